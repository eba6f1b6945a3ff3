"""Llama and what has its shape (Mistral without extras), as safetensors from Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftruntime.config import ModelConfig
from shiftruntime.errors import model_unsupported
from shiftruntime.models.family import Family, required, rope_scaling, token_ids

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_ACTIVATIONS = ("silu", "swish")

NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
} | {
    short + suffix: f"model.layers.{{i}}.self_attn.{short}_proj.{kind}"
    for short in ("q", "k", "v", "o")
    for suffix, kind in (("", "weight"), ("_bias", "bias"))
}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From config.json; raises StartupError."""
    architecture = raw["architectures"][0]
    where = "config.json"
    if raw.get("mlp_bias"):
        raise model_unsupported(f"{architecture}: mlp_bias is not supported")
    if raw.get("hidden_act", "silu") not in _ACTIVATIONS:
        raise model_unsupported(
            f"{architecture}: activation {raw['hidden_act']!r}; supported: {', '.join(_ACTIVATIONS)}"
        )
    hidden = required(raw, "hidden_size", int, where)
    heads = required(raw, "num_attention_heads", int, where)
    layers = required(raw, "num_hidden_layers", int, where)
    rope: dict[str, Any] = {"rope_theta": raw.get("rope_theta", 10_000.0)}
    rope |= raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    window = raw.get("sliding_window")
    eos = token_ids(raw.get("eos_token_id"))
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        num_layers=layers,
        num_query_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or hidden // heads,
        intermediate_size=required(raw, "intermediate_size", int, where),
        vocab_size=required(raw, "vocab_size", int, where),
        max_position_embeddings=required(raw, "max_position_embeddings", int, where),
        rms_norm_eps=required(raw, "rms_norm_eps", float, where),
        rope_theta=required(rope, "rope_theta", float, where),
        rope_scaling=rope_scaling(rope, architecture),
        sliding_window=window,
        sliding_layers=(True,) * layers if window else (),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        bos_id=raw.get("bos_token_id"),
        eos_ids=eos,
        add_bos=raw.get("bos_token_id") is not None,
    )


FAMILY = Family(read_config, NAMES)
