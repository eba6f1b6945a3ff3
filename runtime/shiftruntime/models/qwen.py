"""Qwen 2, 2.5 and 3 (dense), as safetensors from Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftruntime.config import ModelConfig
from shiftruntime.models.family import Family
from shiftruntime.models.hf_config import NAMES, common_values, optional, sliding_values

QWEN2_ARCHITECTURES = ("Qwen2ForCausalLM",)
QWEN3_ARCHITECTURES = ("Qwen3ForCausalLM",)
_QWEN3_HEAD_DIM = 128  # what a file without the key means
_FIRST_SLIDING_LAYER = 28


def read_qwen2_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Biases on q, k and v only; raises StartupError."""
    return ModelConfig(attention_bias=True, **common_values(raw), **sliding(raw))


def read_qwen3_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Queries and keys normed per head; raises StartupError."""
    biased = bool(raw.get("attention_bias", False))
    values = common_values(raw, head_dim=_QWEN3_HEAD_DIM)
    return ModelConfig(qk_norm=True, attention_bias=biased, output_bias=biased, **values, **sliding(raw))


def sliding(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``sliding_window`` means something only with ``use_sliding_window``, for the layers after the first few."""
    if not raw.get("use_sliding_window"):
        return {}
    first = optional(raw, "max_window_layers", _FIRST_SLIDING_LAYER)
    layers = optional(raw, "num_hidden_layers", 0)
    return sliding_values(raw, raw.get("sliding_window", 4096), tuple(i >= first for i in range(layers)))


QWEN2_FAMILY = Family(read_qwen2_config, NAMES)
QWEN3_FAMILY = Family(read_qwen3_config, NAMES)
