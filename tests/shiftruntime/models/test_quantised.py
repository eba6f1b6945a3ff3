"""Quantised checkpoints against compressed-tensors, which made them: element by element, and as whole models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from helpers.tiny_models import LoadedModel, one_step_each, random_sequences, run_steps, save_llama
from safetensors.torch import load_file, save_file
from shiftcore.layout import Gear
from shiftruntime.errors import StartupError
from shiftruntime.models.quantised import dequantise, read_quantisation
from shiftruntime.models.source import open_model
from torch import Tensor

ROWS, COLUMNS, BLOCK = 96, 48, (40, 20)  # blocks that do not divide: the last ones are cut
SCHEMES: dict[str, dict[str, Any]] = {
    "int8-channel": {"type": "int", "strategy": "channel"},
    "int8-tensor": {"type": "int", "strategy": "tensor"},
    "int8-group": {"type": "int", "strategy": "group", "group_size": 16},
    "int8-channel-asymmetric": {"type": "int", "strategy": "channel", "symmetric": False},
    "fp8-channel": {"type": "float", "strategy": "channel"},
    "fp8-tensor": {"type": "float", "strategy": "tensor"},
    "fp8-block": {"type": "float", "strategy": "block", "block_structure": list(BLOCK)},
}


def parts(shape: torch.Size, scheme: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of a weight that share one scale."""
    return {
        "tensor": (shape[0], shape[1]),
        "channel": (1, shape[1]),
        "group": (1, scheme.get("group_size", 0)),
        "block": BLOCK,
    }[scheme["strategy"]]


def scales(weight: Tensor, scheme: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """A scale for every part, by its largest element, and a zero point when the scheme has one."""
    rows, columns = parts(weight.shape, scheme)
    number = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
    scale = torch.empty(number)
    zero = torch.zeros(number, dtype=torch.int8)
    for i in range(number[0]):
        for j in range(number[1]):
            part = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            scale[i, j] = part.abs().max() / (100.0 if scheme["type"] == "int" else 440.0)
            zero[i, j] = (i + j) % 5 - 2
    if scheme["strategy"] == "tensor":
        scale, zero = scale.reshape(1), zero.reshape(1)
    return scale, zero if scheme.get("symmetric") is False else None


def quantised(weight: Tensor, scheme: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(8-bit weight, scale, zero point, what compressed-tensors makes of them again)."""
    args = QuantizationArgs(num_bits=8, **scheme)
    scale, zero = scales(weight, scheme)
    stored = torch.int8 if scheme["type"] == "int" else torch.float8_e4m3fn
    small = quantize(weight, scale, zero, args, dtype=stored).contiguous()
    return small, scale, zero, dequantize(small, scale, zero, args, dtype=torch.float32)


@pytest.mark.parametrize("name", SCHEMES)
def test_elements_are_those_of_compressed_tensors(name: str) -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    small, scale, zero, expected = quantised(weight, SCHEMES[name])
    block = BLOCK if SCHEMES[name]["strategy"] == "block" else None
    mine = dequantise(small, scale, zero, block)
    assert torch.allclose(mine, expected, rtol=1e-6, atol=0)
    assert 0 < float((mine - weight).abs().max()) < 0.2


def save_quantised(folder: Path, scheme: dict[str, Any], method: str = "compressed-tensors") -> Any:
    """A tiny Llama whose projections are quantised; returns the Hugging Face model with the weights that this means."""
    model = save_llama(folder)
    tensors = load_file(folder / "model.safetensors")
    suffix = "weight_scale_inv" if method == "fp8" else "weight_scale"
    with torch.no_grad():
        for name, weight in list(tensors.items()):
            if "_proj.weight" in name:
                small, scale, zero, meant = quantised(weight, scheme)
                stem = name.removesuffix(".weight")
                tensors |= {name: small, f"{stem}.{suffix}": scale, f"{stem}.input_scale": torch.ones(1)}
                if zero is not None:
                    tensors[f"{stem}.weight_zero_point"] = zero
                model.get_parameter(name).copy_(meant)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 8, "symmetric": True} | scheme
    described: dict[str, Any] = {
        "quant_method": method,
        "format": "int-quantized" if scheme["type"] == "int" else "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    if method == "fp8":
        described = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    describe(folder, described)
    return model


def describe(folder: Path, quantisation: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantisation}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "method"), [*((n, "compressed-tensors") for n in SCHEMES), ("fp8-block", "fp8")])
def test_a_quantised_model_is_the_one_it_means(name: str, method: str, tmp_path: Path) -> None:
    model = save_quantised(tmp_path, SCHEMES[name], method)
    sequences = random_sequences((23, 9), random.Random(0))
    with torch.inference_mode():
        expected = [model(torch.tensor([s])).logits[0].log_softmax(-1) for s in sequences]
    run = run_steps(LoadedModel.load(tmp_path, 4), one_step_each(sequences, Gear(2, 2)), sequences)
    for mine, theirs in zip(run.logits, expected, strict=True):
        assert float((mine.log_softmax(-1) - theirs).abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("scheme", "method", "stored"),
    [
        ("int8-channel", "compressed-tensors", "int8"),
        ("fp8-tensor", "compressed-tensors", "fp8"),
        ("fp8-block", "fp8", "fp8"),
        (None, "", "none"),
    ],
)
def test_a_model_is_taken_as_it_is_or_refused_if_it_is_not_as_asked(
    scheme: str | None, method: str, stored: str, tmp_path: Path
) -> None:
    if scheme is None:
        save_llama(tmp_path)
    else:
        save_quantised(tmp_path, SCHEMES[scheme], method)
    assert open_model(tmp_path).quantisation == stored
    assert open_model(tmp_path, stored).quantisation == stored
    other = "int8" if stored == "fp8" else "fp8"
    with pytest.raises(StartupError, match=f"stored as {stored}, and quantization {other} was asked for") as caught:
        open_model(tmp_path, other)
    assert caught.value.reason == "ModelUnsupported"


def test_a_weight_without_its_scale_is_refused(tmp_path: Path) -> None:
    save_quantised(tmp_path, SCHEMES["int8-channel"])
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(StartupError, match=r"layers\.1\.mlp\.up_proj\.weight_scale"):
        open_model(tmp_path)


def test_a_scale_that_fits_no_part_of_its_weight_is_refused(tmp_path: Path) -> None:
    save_quantised(tmp_path, SCHEMES["int8-channel"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(7, 1)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(StartupError, match=r"layers\.0\.mlp\.up_proj\.weight.*7 scales"):
        list(open_model(tmp_path).pieces())


def test_eight_bits_without_a_quantization_config_are_refused(tmp_path: Path) -> None:
    save_quantised(tmp_path, SCHEMES["fp8-channel"])
    describe(tmp_path, {})
    with pytest.raises(StartupError, match="F8_E4M3"):
        open_model(tmp_path)


GROUP = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"quant_method": "awq"}, "method 'awq'; supported: compressed-tensors"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "format 'pack-quantized'; supported: "),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "no config_groups"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {"g": {"weights": None}},
            },
            "g of config_groups quantises no weights",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "group"}}},
            },
            "4-bit weights by 'group'",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "two positive numbers, found"),
        ("fp8", "must be an object"),
    ],
)
def test_what_is_not_built_is_refused_by_name(config: Any, sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence):
        read_quantisation({"quantization_config": config}, Path("config.json"))
