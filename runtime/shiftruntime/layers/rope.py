"""Inverse RoPE frequencies, with the scalings that model configurations name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shiftruntime.config import RopeScaling


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling | None, dtype: torch.dtype) -> Tensor:
    """[head_dim / 2] in ``dtype``, computed in float32 as the models were trained."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is not None:
        frequencies = frequencies / scaling.factor if scaling.kind == "linear" else _llama3(frequencies, scaling)
    return frequencies.to(dtype)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Keep short wavelengths, stretch long ones, blend between (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    blend = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
