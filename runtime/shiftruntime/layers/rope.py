"""RoPE: inverse frequencies with the scalings that model configurations name, and a step's tables of cos and sin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftruntime.config import RopeScaling
from shiftruntime.kernels.ops import Ops


@dataclass(frozen=True)
class Rope:
    """How one kind of layer turns its queries and keys."""

    inverse_frequencies: Tensor  # [head_dim / 2]
    factor: float  # on cos and sin

    @staticmethod
    def of(theta: float, head_dim: int, scaling: RopeScaling | None, dtype: torch.dtype) -> Rope:
        frequencies = inverse_frequencies(theta, head_dim, scaling, dtype)
        return Rope(frequencies, 1.0 if scaling is None else scaling.attention_factor)

    def tables(self, positions: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """positions [rows] → cos, sin [rows, 1, head_dim / 2]."""
        cos, sin = ops.rope_tables(positions, self.inverse_frequencies)
        return (cos, sin) if self.factor == 1.0 else (cos * self.factor, sin * self.factor)


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling | None, dtype: torch.dtype) -> Tensor:
    """[head_dim / 2] in ``dtype``, computed in float32 as the models were trained."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies.to(dtype)
    if scaling.kind == "factors":
        return (frequencies / torch.tensor(scaling.factors, dtype=torch.float32)).to(dtype)
    if scaling.kind == "linear":
        kept = torch.zeros_like(frequencies)
    else:
        kept = _llama3(frequencies, scaling) if scaling.kind == "llama3" else _yarn(theta, head_dim, scaling)
    return ((1 - kept) * frequencies / scaling.factor + kept * frequencies).to(dtype)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Share of each frequency that is not stretched: 1 for short wavelengths, 0 for long ones (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    blend = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return blend.clamp(0, 1)


def _yarn(theta: float, head_dim: int, scaling: RopeScaling) -> Tensor:
    """Share of each frequency that is not stretched: falls linearly with the dimension (arXiv 2309.00071)."""

    def dimension(turns: float) -> float:
        """The (real-valued) pair that turns so often within the original context."""
        return head_dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001  # a step instead of a division by zero
    return 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
