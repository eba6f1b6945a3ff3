"""What the config.json of Hugging Face and the tensor names of its checkpoints have in common across dense families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftruntime.config import Activation
from shiftruntime.errors import model_unsupported
from shiftruntime.models.family import required, token_ids
from shiftruntime.models.rope_config import context_length, rope_parameters, rope_scaling, rope_theta

WHERE = "config.json"
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
LAYER = "model.layers.{i}."

NAMES = (
    {
        "embed": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
        "attn_norm": LAYER + "input_layernorm.weight",
        "mlp_norm": LAYER + "post_attention_layernorm.weight",
        "q_norm": LAYER + "self_attn.q_norm.weight",
        "k_norm": LAYER + "self_attn.k_norm.weight",
    }
    | {
        short + suffix: f"{LAYER}self_attn.{short}_proj.{kind}"
        for short in ("q", "k", "v", "o")
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }
    | {
        short + suffix: f"{LAYER}mlp.{short}_proj.{kind}"
        for short in ("gate", "up", "down")
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }
)


def common_values(raw: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Arguments of ModelConfig that every dense family reads alike; raises StartupError.

    ``defaults`` are keys of config.json, with what the family means when its file leaves them out or says null.
    """
    raw = defaults | {key: value for key, value in raw.items() if value is not None}
    architecture = raw["architectures"][0]
    hidden, heads = required(raw, "hidden_size", int, WHERE), required(raw, "num_attention_heads", int, WHERE)
    max_position = required(raw, "max_position_embeddings", int, WHERE)
    rope = rope_parameters(raw)
    scaling = rope_scaling(rope, architecture, raw.get("original_max_position_embeddings") or max_position)
    return {
        "architecture": architecture,
        "hidden_size": hidden,
        "num_layers": required(raw, "num_hidden_layers", int, WHERE),
        "num_query_heads": heads,
        "num_kv_heads": optional(raw, "num_key_value_heads", heads),
        "head_dim": optional(raw, "head_dim", hidden // max(heads, 1)),
        "intermediate_size": required(raw, "intermediate_size", int, WHERE),
        "vocab_size": required(raw, "vocab_size", int, WHERE),
        "max_position_embeddings": context_length(max_position, scaling),
        "rms_norm_eps": required(raw, "rms_norm_eps", float, WHERE),
        "rope_theta": rope_theta(rope),
        "rope_scaling": scaling,
        "activation": activation(raw, architecture),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "bos_id": raw.get("bos_token_id"),
        "eos_ids": token_ids(raw.get("eos_token_id")),
        "add_bos": raw.get("bos_token_id") is not None,
    }


def optional(raw: Mapping[str, Any], key: str, otherwise: int) -> int:
    """A whole number that may be absent or null; raises StartupError(ModelDamaged)."""
    return otherwise if raw.get(key) is None else int(required(raw, key, int, WHERE))


def optional_number(raw: Mapping[str, Any], key: str, absent: float) -> float | None:
    """A number, or null for none; raises StartupError(ModelDamaged)."""
    value = raw.get(key, absent)
    return None if value is None else float(required({key: value}, key, float, WHERE))


def activation(raw: Mapping[str, Any], architecture: str) -> Activation:
    """``hidden_activation`` (Gemma) or ``hidden_act``; raises StartupError(ModelUnsupported)."""
    name = raw.get("hidden_activation") or raw.get("hidden_act", "silu")
    if name not in ACTIVATIONS:
        raise model_unsupported(f"{architecture}: activation {name!r}; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse(raw: Mapping[str, Any], *keys: str) -> None:
    """Raises StartupError(ModelUnsupported) for a key that is set and that the family cannot mean."""
    for key in keys:
        if raw.get(key):
            raise model_unsupported(f"{raw['architectures'][0]}: {key}={raw[key]!r} is not supported")


def sliding_values(raw: Mapping[str, Any], window: int | None, otherwise: tuple[bool, ...]) -> dict[str, Any]:
    """``sliding_window`` and ``sliding_layers`` of ModelConfig, from ``layer_types`` or else from the family's rule."""
    if not window:
        return {}
    types = raw.get("layer_types")
    return {"sliding_window": window, "sliding_layers": _slides(types, raw) if types else otherwise}


def _slides(types: list[str], raw: Mapping[str, Any]) -> tuple[bool, ...]:
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise model_unsupported(f"{raw['architectures'][0]}: layer type {kind!r} is not supported")
    return tuple(kind == "sliding_attention" for kind in types)
