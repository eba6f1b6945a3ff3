"""Gemma 2, as safetensors from Hugging Face: soft caps on scores and logits, every second layer slides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shiftruntime.config import ModelConfig
from shiftruntime.models.family import Family, required
from shiftruntime.models.hf_config import LAYER, NAMES, WHERE, common_values, optional_number, refuse, sliding_values

ARCHITECTURES = ("Gemma2ForCausalLM",)
_WINDOW = 4096
_ATTENTION_CAP, _LOGIT_CAP = 50.0, 30.0

HF_NAMES = NAMES | {
    "post_attn_norm": LAYER + "post_attention_layernorm.weight",
    "mlp_norm": LAYER + "pre_feedforward_layernorm.weight",
    "post_mlp_norm": LAYER + "post_feedforward_layernorm.weight",
}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From config.json, where a cap of null means none; raises StartupError."""
    refuse(raw, "use_bidirectional_attention")
    values = common_values(raw, tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh")
    every_second = tuple(i % 2 == 0 for i in range(values["num_layers"]))
    biased = bool(raw.get("attention_bias", False))
    return ModelConfig(
        **values,
        **sliding_values(raw, raw.get("sliding_window", _WINDOW), every_second),
        attention_soft_cap=optional_number(raw, "attn_logit_softcapping", _ATTENTION_CAP),
        logit_soft_cap=optional_number(raw, "final_logit_softcapping", _LOGIT_CAP),
        attention_scale=required(raw, "query_pre_attn_scalar", float, WHERE) ** -0.5,
        attention_bias=biased,
        output_bias=biased,
        post_norms=True,
        norm_offset=1.0,
        embedding_multiplier=math.sqrt(values["hidden_size"]),
    )


FAMILY = Family(read_config, HF_NAMES)
