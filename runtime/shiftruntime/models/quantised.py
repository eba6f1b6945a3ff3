"""Quantised safetensors: 8-bit weights as compressed-tensors describes them, and fp8 in blocks, dequantised at load.

Weights are computed in the dtype that is served, and activations are not quantised. That is at least as accurate as
what the checkpoint was made for, and takes the memory of one that is not quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftruntime.errors import model_damaged, model_unsupported

STORED_DTYPES = ("F8_E4M3", "I8")
_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")
# Say how activations or the KV cache would be quantised; of no use to weights.
_UNUSED = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale", "weight_shape")


@dataclass(frozen=True)
class Quantisation:
    """How the weights of one checkpoint are scaled."""

    scale: str  # suffix of the tensor with the scales
    zero_point: str | None = None  # suffix, when the scheme is asymmetric
    block: tuple[int, int] | None = None  # rows and columns that share a scale, where the last block may be cut
    kind: str = "fp8"  # or int8: how a weight is stored

    def sides(self, weight: str) -> tuple[str, ...]:
        """Names of the tensors that a weight needs: its scale, and its zero point when there is one."""
        stem = weight.removesuffix(".weight")
        return tuple(f"{stem}.{suffix}" for suffix in (self.scale, self.zero_point) if suffix)

    def is_side(self, name: str) -> bool:
        """Whether a tensor only says something about a weight or its activations."""
        suffix = name.rpartition(".")[2]
        return suffix in (self.scale, self.zero_point, *_UNUSED)


def read_quantisation(raw: Mapping[str, Any], file: Path) -> Quantisation | None:
    """From ``quantization_config`` of config.json; None: not quantised. Raises StartupError(ModelUnsupported)."""
    config = raw.get("quantization_config") or raw.get("compression_config")
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise model_damaged(f"{file}: quantization_config must be an object, found {config!r}")
    method = config.get("quant_method")
    if method == "fp8":
        return Quantisation("weight_scale_inv", block=_block(config.get("weight_block_size"), file))
    if method == "compressed-tensors":
        return _compressed_tensors(config, file)
    raise model_unsupported(
        f"{file}: quantisation method {method!r}; supported: compressed-tensors with 8-bit weights, and fp8. Give the "
        "checkpoint in bfloat16, in one of these, or as a GGUF file"
    )


def _compressed_tensors(config: Mapping[str, Any], file: Path) -> Quantisation:
    form = config.get("format")
    if form not in _FORMATS:
        raise model_unsupported(f"{file}: compressed-tensors format {form!r}; supported: {', '.join(_FORMATS)}")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise model_damaged(f"{file}: quantization_config has no config_groups")
    asymmetric, blocks, kinds = False, set(), set()
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise model_unsupported(f"{file}: {name} of config_groups quantises no weights")
        bits, strategy = weights.get("num_bits"), weights.get("strategy")
        if bits != 8 or strategy not in _STRATEGIES:
            raise model_unsupported(
                f"{file}: {name} has {bits!r}-bit weights by {strategy!r}; "
                f"supported: 8 bits by {', '.join(_STRATEGIES)}"
            )
        asymmetric |= weights.get("symmetric") is False
        kinds.add("int8" if weights.get("type", "int" if form == "int-quantized" else "float") == "int" else "fp8")
        if strategy == "block":
            blocks.add(_block(weights.get("block_structure"), file))
    if len(blocks) > 1:
        raise model_unsupported(f"{file}: weights in blocks of several sizes: {sorted(map(str, blocks))}")
    block = next(iter(blocks), None)
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    return Quantisation("weight_scale", "weight_zero_point" if asymmetric else None, block, kind)


def _block(value: object, file: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value):
        return value[0], value[1]
    raise model_damaged(f"{file}: a block of weights must be two positive numbers, found {value!r}")


def dequantise(
    weight: Tensor, scale: Tensor, zero_point: Tensor | None = None, block: tuple[int, int] | None = None
) -> Tensor:
    """weight [N, K] of 8 bits → [N, K] float32.

    Scale and zero point are [], [1], [N], [N, 1], [N, K / group] or [N / rows of block,
    K / columns of block], rounded up. Raises ValueError when they fit no part of the weight.
    """
    wide = weight.to(torch.float32)
    if zero_point is not None:
        wide = wide - _spread(zero_point.to(torch.float32), weight.shape, block)
    return wide * _spread(scale.to(torch.float32), weight.shape, block)


def _spread(values: Tensor, shape: torch.Size, block: tuple[int, int] | None) -> Tensor:
    """One value per part of the weight → one per element, as far as broadcasting does not do it."""
    if values.numel() == 1:
        return values.reshape(1, 1)
    if values.dim() == 1 and len(values) == shape[0]:
        return values[:, None]
    if values.dim() != len(shape):
        raise ValueError(f"scales of shape {tuple(values.shape)} do not fit a weight of shape {tuple(shape)}")
    for dimension, (parts, length) in enumerate(zip(values.shape, shape, strict=True)):
        if parts in (1, length):
            continue
        size = block[dimension] if block else length // parts
        if -(-length // size) != parts:
            raise ValueError(f"{parts} scales do not divide {length} rows or columns in parts of {size}")
        values = values.repeat_interleave(size, dimension).narrow(dimension, 0, length)
    return values
