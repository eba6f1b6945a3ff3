"""Gemma 3 (text): safetensors from Hugging Face, and GGUF.

What the GGUF header leaves out: sliding layers use the RoPE base 10,000 and every sixth layer sees all tokens. Its norm
weights already contain the +1 that the safetensors leave to the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shiftruntime.config import ModelConfig
from shiftruntime.errors import model_unsupported
from shiftruntime.models.family import Family, required, rope_scaling, token_ids

ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3TextForCausalLM")
GGUF_ARCHITECTURE = "gemma3"
_LOCAL_THETA = 10_000.0
_GLOBAL_THETA = 1_000_000.0
_PATTERN = 6  # one full layer after five sliding ones

_HF_LAYER = "model.layers.{i}."
HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "attn_norm": _HF_LAYER + "input_layernorm.weight",
    "q": _HF_LAYER + "self_attn.q_proj.weight",
    "k": _HF_LAYER + "self_attn.k_proj.weight",
    "v": _HF_LAYER + "self_attn.v_proj.weight",
    "o": _HF_LAYER + "self_attn.o_proj.weight",
    "q_norm": _HF_LAYER + "self_attn.q_norm.weight",
    "k_norm": _HF_LAYER + "self_attn.k_norm.weight",
    "post_attn_norm": _HF_LAYER + "post_attention_layernorm.weight",
    "mlp_norm": _HF_LAYER + "pre_feedforward_layernorm.weight",
    "gate": _HF_LAYER + "mlp.gate_proj.weight",
    "up": _HF_LAYER + "mlp.up_proj.weight",
    "down": _HF_LAYER + "mlp.down_proj.weight",
    "post_mlp_norm": _HF_LAYER + "post_feedforward_layernorm.weight",
}
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
    architecture = raw["architectures"][0]
    where = "config.json"
    for key in ("attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if raw.get(key):
            raise model_unsupported(f"{architecture}: {key}={raw[key]!r} is not supported")
    if raw.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise model_unsupported(f"{architecture}: hidden_activation {raw['hidden_activation']!r} is not supported")
    hidden = required(raw, "hidden_size", int, where)
    layers = required(raw, "num_hidden_layers", int, where)
    parameters = raw.get("rope_parameters") or {}
    full: dict[str, Any] = {"rope_theta": raw.get("rope_theta", _GLOBAL_THETA)}
    full |= parameters.get("full_attention") or raw.get("rope_scaling") or {}
    local: dict[str, Any] = {"rope_theta": raw.get("rope_local_base_freq", _LOCAL_THETA)}
    local |= parameters.get("sliding_attention") or {}
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        num_layers=layers,
        num_query_heads=required(raw, "num_attention_heads", int, where),
        num_kv_heads=required(raw, "num_key_value_heads", int, where),
        head_dim=required(raw, "head_dim", int, where),
        intermediate_size=required(raw, "intermediate_size", int, where),
        vocab_size=required(raw, "vocab_size", int, where),
        max_position_embeddings=required(raw, "max_position_embeddings", int, where),
        rms_norm_eps=required(raw, "rms_norm_eps", float, where),
        rope_theta=float(full["rope_theta"]),
        rope_scaling=rope_scaling(full, architecture),
        rope_theta_local=float(local["rope_theta"]),
        sliding_window=raw.get("sliding_window"),
        sliding_layers=_sliding_layers(raw, layers),
        attention_scale=required(raw, "query_pre_attn_scalar", float, where) ** -0.5,
        norm_offset=1.0,
        bos_id=raw.get("bos_token_id"),
        eos_ids=token_ids(raw.get("eos_token_id")),
        tie_embeddings=bool(raw.get("tie_word_embeddings", True)),
        **_shared(hidden),
    )


def _sliding_layers(raw: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    if raw.get("layer_types"):
        return tuple(kind == "sliding_attention" for kind in raw["layer_types"])
    return _pattern(layers, raw.get("sliding_window_pattern") or _PATTERN)


def _pattern(layers: int, period: int) -> tuple[bool, ...]:
    return tuple(bool((i + 1) % period) for i in range(layers))


def _shared(hidden: int) -> dict[str, Any]:
    """What every Gemma 3 has, whatever file it comes from."""
    return {
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embedding_multiplier": math.sqrt(hidden),
        "add_bos": True,
    }


def read_gguf_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From GGUF metadata; raises StartupError."""

    def number(key: str) -> int:
        return int(required(raw, f"gemma3.{key}", int, "GGUF header"))

    hidden, layers, head_dim = number("embedding_length"), number("block_count"), number("attention.key_length")
    eos = raw.get("tokenizer.ggml.eos_token_id")
    return ModelConfig(
        architecture=GGUF_ARCHITECTURE,
        hidden_size=hidden,
        num_layers=layers,
        num_query_heads=number("attention.head_count"),
        num_kv_heads=number("attention.head_count_kv"),
        head_dim=head_dim,
        intermediate_size=number("feed_forward_length"),
        vocab_size=len(raw.get("tokenizer.ggml.tokens", ())),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=required(raw, "gemma3.attention.layer_norm_rms_epsilon", float, "GGUF header"),
        rope_theta=float(raw.get("gemma3.rope.freq_base", _GLOBAL_THETA)),
        rope_scaling=_gguf_rope_scaling(raw),
        rope_theta_local=_LOCAL_THETA,
        sliding_window=number("attention.sliding_window"),
        sliding_layers=_pattern(layers, _PATTERN),
        attention_scale=head_dim**-0.5,
        bos_id=raw.get("tokenizer.ggml.bos_token_id"),
        eos_ids=(eos,) if isinstance(eos, int) else (),
        tie_embeddings=True,
        **_shared(hidden),
    )


def _gguf_rope_scaling(raw: Mapping[str, Any]) -> Any:
    kind = raw.get("gemma3.rope.scaling.type", "none")
    if kind == "none":
        return None
    return rope_scaling({"rope_type": kind, "factor": raw.get("gemma3.rope.scaling.factor", 1.0)}, GGUF_ARCHITECTURE)


FAMILY = Family(read_config, HF_NAMES)
GGUF_FAMILY = Family(read_gguf_config, GGUF_NAMES)
