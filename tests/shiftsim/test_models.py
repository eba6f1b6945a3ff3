"""Shapes of models and facts of hardware."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shiftsim import hardware, models
from shiftsim.errors import UserError

# As the model cards say, in billions.
PUBLISHED_PARAMETERS = {"llama-3.3-70b": 70.6, "llama-3.1-8b": 8.03, "qwen3-32b": 32.8, "qwen3-30b-a3b": 30.5}


@pytest.mark.parametrize("name", models.names())
def test_the_shape_has_as_many_parameters_as_published(name: str) -> None:
    assert models.load(name).parameters / 1e9 == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.005)


def test_the_name_says_how_wide_weights_are() -> None:
    assert models.load("qwen3-32b-fp8").weight_bytes == 1
    assert models.load("qwen3-32b-bf16").weight_bytes == models.load("qwen3-32b").weight_bytes == 2
    assert models.load("qwen3-32b-fp8").kv_bytes == 2
    assert models.load("qwen3-32b-fp8", kv="fp8").kv_bytes == 1


def test_a_config_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    shape = {
        "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512, "num_hidden_layers": 4,
        "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 4096,
        "quantization_config": {"quant_method": "fp8"},
    }  # fmt: skip
    path.write_text(json.dumps(shape))
    found = models.load(str(path))
    assert (found.head_dim, found.weight_bytes, found.experts) == (64, 1, 0)


GROUP = {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8, "type": "float"}}


def config(folder: Path, quantisation: dict[str, object] | None) -> str:
    path = folder / "config.json"
    shape = {
        "num_attention_heads": 8, "hidden_size": 512, "num_hidden_layers": 4, "intermediate_size": 1024,
        "vocab_size": 1000, "max_position_embeddings": 4096, "quantization_config": quantisation,
    }  # fmt: skip
    path.write_text(json.dumps(shape))
    return str(path)


@pytest.mark.parametrize(
    ("quantisation", "weight_bytes"),
    [
        (None, 2),
        ({"quant_method": "fbgemm_fp8"}, 1),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": GROUP}}, 1),
    ],
)
def test_weights_are_as_wide_as_the_config_says(
    tmp_path: Path, quantisation: dict[str, object] | None, weight_bytes: int
) -> None:
    assert models.load(config(tmp_path, quantisation)).weight_bytes == weight_bytes


@pytest.mark.parametrize(
    ("quantisation", "why"),
    [
        ({"quant_method": "awq", "bits": 4}, "with quant_method 'awq'"),
        ({"quant_method": "gptq", "bits": 8}, "with quant_method 'gptq'"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {**GROUP, "weights": {"num_bits": 4}}}},
            "with weights of 4 bits in a",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": GROUP, "b": {**GROUP, "weights": None}}},
            "with weights of unknown bits in b",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {**GROUP, "input_activations": None}}},
            "with input_activations of unknown bits in a",
        ),
        ({"quant_method": "compressed-tensors"}, "of unknown bits in config_groups"),
    ],
)
def test_a_quantisation_of_unknown_cost_is_refused_and_not_taken_for_another(
    tmp_path: Path, quantisation: dict[str, object], why: str
) -> None:
    """4-bit weights were planned at twice their size, AWQ and GPTQ at four times."""
    with pytest.raises(UserError, match=why + ".*remove quantization_config to plan with bf16"):
        models.load(config(tmp_path, quantisation))


SHAPE = '{"num_attention_heads": 0, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9, '


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "num_attention_heads"),
        ("[1]", "list"),
        ("{", "Expecting"),
        (SHAPE + '"max_position_embeddings": 9}', "division"),
        ('{"model_type": "deepseek_v3"}', "of type deepseek_v3, whose attention"),
        ('{"model_type": "gemma3_text"}', "of type gemma3_text"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=why):
        models.load(str(path))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot be read as a config\.json"):
        models.load(str(path))


def test_a_pod_is_one_machine() -> None:
    with pytest.raises(UserError, match=r"16xH200.*at most 8; use --replicas"):
        hardware.parse("16xH200")


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"'gpt-9'.*llama-3\.3-70b"):
        models.load("gpt-9")
    with pytest.raises(UserError, match="fp4"):
        models.load("qwen3-32b", kv="fp4")
    for bad in ("8xB9", "H200", "0xH200", "8H200"):
        with pytest.raises(UserError, match="NUMBERxGPU with one of H100, H200"):
            hardware.parse(bad)
