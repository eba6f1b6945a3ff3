"""RoPE frequencies and factors equal those of transformers, for parameters as checkpoints name them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from shiftruntime.errors import StartupError
from shiftruntime.layers.rope import inverse_frequencies
from shiftruntime.models.hf_config import common_values
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA31 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
QWEN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 8.0},
    "llama3": LLAMA31,
    "llama3-original-context-left-out": {k: v for k, v in LLAMA31.items() if not k.startswith("original")},
    "yarn": QWEN,
    "yarn-below-one": QWEN | {"factor": 0.5},
    "yarn-original-context-left-out": {"rope_type": "yarn", "factor": 2.0},
    "yarn-untruncated": QWEN | {"truncate": False, "beta_fast": 16, "beta_slow": 2},
    "yarn-attention-factor": QWEN | {"attention_factor": 0.9},
    "yarn-two-mscales": QWEN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn-one-mscale": QWEN | {"mscale": 2.0},
    "yarn-as-a-step": QWEN | {"beta_fast": 1, "beta_slow": 1, "original_max_position_embeddings": 7},
}


def raw_config(**changes: Any) -> dict[str, Any]:
    values = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1,
        "intermediate_size": 8, "vocab_size": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    return values | changes


@pytest.mark.parametrize("older", [False, True], ids=["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies_equal_transformers(name: str, older: bool) -> None:
    parameters = PARAMETERS[name]
    theta = 1_000_000.0
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=4096,
        rope_parameters=parameters | {"rope_theta": theta},
    )  # fmt: skip
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    if older:
        kind = {"type": parameters["rope_type"]} | {k: v for k, v in parameters.items() if k != "rope_type"}
        values = common_values(raw_config(rope_theta=theta, rope_scaling=kind, rope_parameters=None))
    else:
        values = common_values(raw_config(rope_parameters=parameters | {"rope_theta": theta}))
    scaling = values["rope_scaling"]
    mine = inverse_frequencies(values["rope_theta"], values["head_dim"], scaling, torch.float32)
    torch.testing.assert_close(mine, expected, atol=0.0, rtol=1e-6)
    assert scaling.attention_factor == pytest.approx(factor, abs=1e-12)


def test_original_context_beside_the_parameters() -> None:
    raw = raw_config(rope_parameters={"rope_type": "yarn", "factor": 2.0}, original_max_position_embeddings=1024)
    assert common_values(raw)["rope_scaling"].original_max_position == 1024


def test_yarn_stretches_the_context_that_its_file_leaves_unstretched() -> None:
    """Qwen 2.5 asks its users to add yarn to a config.json whose max_position_embeddings stays 32768."""
    raw = raw_config(max_position_embeddings=32768, rope_scaling=QWEN)
    assert common_values(raw)["max_position_embeddings"] == 131072
    assert common_values(raw | {"max_position_embeddings": 131072})["max_position_embeddings"] == 131072
    assert common_values(raw_config(rope_scaling=LLAMA31))["max_position_embeddings"] == 4096


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "proportional", "mrope"])
def test_other_kinds_are_refused_by_name(kind: str) -> None:
    with pytest.raises(StartupError, match=f"'{kind}' is not supported; supported: default, linear, llama3, yarn"):
        common_values(raw_config(rope_scaling={"type": kind, "factor": 2.0}))


@pytest.mark.parametrize("parameters", [None, {"rope_type": "default", "rope_theta": 1e4}, LLAMA31])
def test_a_partial_rotation_named_beside_the_parameters_is_refused(parameters: dict[str, Any] | None) -> None:
    """As older configurations name it; turning all of a head would be another model."""
    raw = raw_config(rope_parameters=parameters)
    assert common_values(raw | {"partial_rotary_factor": 1.0}) == common_values(raw)
    assert common_values(raw | {"partial_rotary_factor": None}) == common_values(raw)
    with pytest.raises(StartupError, match=r"partial_rotary_factor 0\.25 is not supported, only 1"):
        common_values(raw | {"partial_rotary_factor": 0.25})


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_type": "linear", "factor": 0}, "factor is 0"),
        (LLAMA31 | {"high_freq_factor": 1.0}, "low_freq_factor 1.0 is not below"),
        (QWEN | {"attention_factor": -1.0}, "attention_factor is -1.0"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number above 1, found '1e4'"),
        ({"rope_theta": 0}, "rope_theta must be a number above 1, found 0"),
        ([1], r"must be an object, found \[1\]"),
    ],
)
def test_senseless_parameters_are_refused(parameters: Any, words: str) -> None:
    with pytest.raises(StartupError, match=words):
        common_values(raw_config(rope_parameters=parameters))
