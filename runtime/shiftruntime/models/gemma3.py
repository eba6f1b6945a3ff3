"""Gemma 3 (text): safetensors from Hugging Face, and GGUF.

What the GGUF header leaves out: sliding layers use the RoPE base 10,000 and every sixth layer sees all tokens. Its norm
weights already contain the +1 that the safetensors leave to the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shiftruntime.config import ModelConfig
from shiftruntime.errors import model_damaged
from shiftruntime.models.family import Family, required
from shiftruntime.models.gemma2 import HF_NAMES
from shiftruntime.models.gguf_config import gguf_scaling
from shiftruntime.models.gguf_file import eos_ids
from shiftruntime.models.hf_config import WHERE, common_values, optional, refuse, sliding_values
from shiftruntime.models.rope_config import rope_parameters, rope_scaling, rope_theta

ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3TextForCausalLM")
WRAPPER_ARCHITECTURES = ("Gemma3ForConditionalGeneration",)
GGUF_ARCHITECTURE = "gemma3"
_LOCAL_THETA = 10_000.0
_GLOBAL_THETA = 1_000_000.0
_LAYERS_OF_27B = 62  # whose scores are scaled by hidden size / heads; its GGUF header does not say so
_PATTERN = 6  # one full layer after five sliding ones

# The published 4B to 27B leave out what their model class has by default.
_TEXT_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "vocab_size": 262_208,
}
_FROM_WRAPPER = ("architectures", "bos_token_id", "eos_token_id", "tie_word_embeddings")

_GGUF_LAYER = "blk.{i}."
GGUF_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "attn_norm": _GGUF_LAYER + "attn_norm.weight",
    "q": _GGUF_LAYER + "attn_q.weight",
    "k": _GGUF_LAYER + "attn_k.weight",
    "v": _GGUF_LAYER + "attn_v.weight",
    "o": _GGUF_LAYER + "attn_output.weight",
    "q_norm": _GGUF_LAYER + "attn_q_norm.weight",
    "k_norm": _GGUF_LAYER + "attn_k_norm.weight",
    "post_attn_norm": _GGUF_LAYER + "post_attention_norm.weight",
    "mlp_norm": _GGUF_LAYER + "ffn_norm.weight",
    "gate": _GGUF_LAYER + "ffn_gate.weight",
    "up": _GGUF_LAYER + "ffn_up.weight",
    "down": _GGUF_LAYER + "ffn_down.weight",
    "post_mlp_norm": _GGUF_LAYER + "post_ffw_norm.weight",
}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From config.json; raises StartupError."""
    refuse(raw, "attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
    values = common_values(
        raw, rope_theta=_GLOBAL_THETA, tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh"
    )
    layers, architecture = values["num_layers"], values["architecture"]
    local = _local_rope(raw)
    period = optional(raw, "sliding_window_pattern", _PATTERN)
    return ModelConfig(
        **_shared(values["hidden_size"])
        | values
        | sliding_values(raw, raw.get("sliding_window"), _pattern(layers, period)),
        rope_theta_local=rope_theta(local),
        rope_scaling_local=rope_scaling(local, architecture, values["max_position_embeddings"]),
        attention_scale=required(raw, "query_pre_attn_scalar", float, WHERE) ** -0.5,
        norm_offset=1.0,
    )


def read_wrapper_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The text part of a model that also reads images, from config.json; raises StartupError."""
    text = raw.get("text_config")
    if not isinstance(text, Mapping):
        raise model_damaged(f"{WHERE}: text_config must be an object, found {text!r}")
    outer = {key: raw[key] for key in _FROM_WRAPPER if raw.get(key) is not None}
    return read_config(_TEXT_DEFAULTS | dict(text) | outer)


def _local_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Of the sliding layers; the older ``rope_scaling`` is not for them."""
    base = raw.get("rope_local_base_freq") or _LOCAL_THETA
    return rope_parameters({"rope_parameters": raw.get("rope_parameters"), "rope_theta": base}, "sliding_attention")


def _pattern(layers: int, period: int) -> tuple[bool, ...]:
    return tuple(bool((i + 1) % period) for i in range(layers))


def _shared(hidden: int) -> dict[str, Any]:
    """What every Gemma 3 has, whatever file it comes from."""
    return {
        "qk_norm": True,
        "post_norms": True,
        "embedding_multiplier": math.sqrt(hidden),
    }


def read_gguf_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From GGUF metadata; raises StartupError."""

    def number(key: str) -> int:
        return int(required(raw, f"gemma3.{key}", int, "GGUF header"))

    hidden, layers, head_dim = number("embedding_length"), number("block_count"), number("attention.key_length")
    heads = number("attention.head_count")
    return ModelConfig(
        architecture=GGUF_ARCHITECTURE,
        hidden_size=hidden,
        num_layers=layers,
        num_query_heads=heads,
        num_kv_heads=number("attention.head_count_kv"),
        head_dim=head_dim,
        intermediate_size=number("feed_forward_length"),
        vocab_size=len(raw.get("tokenizer.ggml.tokens", ())),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=required(raw, "gemma3.attention.layer_norm_rms_epsilon", float, "GGUF header"),
        rope_theta=float(raw.get("gemma3.rope.freq_base", _GLOBAL_THETA)),
        rope_scaling=gguf_scaling(raw, GGUF_ARCHITECTURE, number("context_length")),
        rope_theta_local=_LOCAL_THETA,
        sliding_window=number("attention.sliding_window"),
        sliding_layers=_pattern(layers, _PATTERN),
        attention_scale=(hidden / heads if layers == _LAYERS_OF_27B else head_dim) ** -0.5,
        activation="gelu_tanh",
        bos_id=raw.get("tokenizer.ggml.bos_token_id"),
        eos_ids=eos_ids(raw),
        tie_embeddings=True,
        add_bos=True,
        **_shared(hidden),
    )


FAMILY = Family(read_config, HF_NAMES)
WRAPPER_FAMILY = Family(
    read_wrapper_config,
    {canonical: f"language_model.{name}" for canonical, name in HF_NAMES.items()},
    ignored=("vision_tower.", "multi_modal_projector."),
)
GGUF_FAMILY = Family(read_gguf_config, GGUF_NAMES)
