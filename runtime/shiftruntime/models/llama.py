"""Llama 2 and 3.x, and Mistral, as safetensors from Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftruntime.config import ModelConfig
from shiftruntime.models.family import Family
from shiftruntime.models.hf_config import NAMES as NAMES
from shiftruntime.models.hf_config import common_values, sliding_values

ARCHITECTURES = ("LlamaForCausalLM",)
MISTRAL_ARCHITECTURES = ("MistralForCausalLM",)
_MISTRAL_WINDOW = 4096  # what a Mistral file without the key means; later ones say null


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's config.json; raises StartupError."""
    biased = bool(raw.get("attention_bias", False))
    return ModelConfig(
        attention_bias=biased,
        output_bias=biased,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        **common_values(raw),
    )


def read_mistral_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Mistral's config.json: no biases, and all layers slide or none; raises StartupError."""
    values = common_values(raw)
    window = raw.get("sliding_window", _MISTRAL_WINDOW)
    return ModelConfig(**values, **sliding_values(raw, window, (True,) * values["num_layers"]))


FAMILY = Family(read_config, NAMES)
MISTRAL_FAMILY = Family(read_mistral_config, NAMES)
