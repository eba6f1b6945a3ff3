"""Llama (and Mistral), Qwen 2 and Qwen 3 as GGUF files: what their headers say and what they call their tensors.

Two things lie in the tensors and not in the header: whether there are biases and an output matrix, and by what Llama
3.x divides each RoPE frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shiftruntime.config import ModelConfig, RopeScaling
from shiftruntime.errors import model_damaged, model_unsupported
from shiftruntime.models.family import Family, required
from shiftruntime.models.gguf_file import eos_ids
from shiftruntime.models.rope_config import context_length, rope_scaling, rope_theta

ARCHITECTURES = ("llama", "qwen2", "qwen3")
PAIRED_ROWS = ("llama",)  # files of these keep the two halves of a RoPE pair in neighbouring rows of q and k
TENSORS, ROPE_FACTORS = "tensors", "rope_factors"  # what gguf_source adds to the header: names, values or ()
ROPE_FACTORS_TENSOR = "rope_freqs.weight"
WHERE = "GGUF header"

_LAYER = "blk.{i}."
NAMES = (
    {
        "embed": "token_embd.weight",
        "final_norm": "output_norm.weight",
        "lm_head": "output.weight",
        "attn_norm": _LAYER + "attn_norm.weight",
        "mlp_norm": _LAYER + "ffn_norm.weight",
        "q_norm": _LAYER + "attn_q_norm.weight",
        "k_norm": _LAYER + "attn_k_norm.weight",
    }
    | {
        short + suffix: f"{_LAYER}{long}.{kind}"
        for short, long in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output"))
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }
    | {
        short + suffix: f"{_LAYER}ffn_{short}.{kind}"
        for short in ("gate", "up", "down")
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }
)


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From GGUF metadata; raises StartupError."""
    architecture = str(raw["general.architecture"])

    def number(key: str) -> int:
        return int(required(raw, f"{architecture}.{key}", int, WHERE))

    def optional(key: str, otherwise: int) -> int:
        return number(key) if raw.get(f"{architecture}.{key}") is not None else otherwise

    if optional("expert_count", 0):
        raise model_unsupported(f"{architecture} GGUF with {number('expert_count')} experts is not supported")
    heads, hidden = number("attention.head_count"), number("embedding_length")
    head_dim = optional("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if optional(key, head_dim) != head_dim:
            raise model_unsupported(f"{architecture} GGUF: {key} {number(key)} differs from the head size {head_dim}")
    scaling = _scaling(raw, architecture, number("context_length"), head_dim)
    has = _first_layer_has(raw)
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        num_layers=number("block_count"),
        num_query_heads=heads,
        num_kv_heads=optional("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=number("feed_forward_length"),
        vocab_size=len(raw.get("tokenizer.ggml.tokens", ())),
        max_position_embeddings=context_length(number("context_length"), scaling),
        rms_norm_eps=required(raw, f"{architecture}.attention.layer_norm_rms_epsilon", float, WHERE),
        rope_theta=rope_theta({"rope_theta": raw.get(f"{architecture}.rope.freq_base", 10_000.0)}),
        rope_scaling=scaling,
        qk_norm=has("q_norm"),
        attention_bias=has("q_bias"),
        output_bias=has("o_bias"),
        mlp_bias=has("up_bias"),
        tie_embeddings=NAMES["lm_head"] not in raw[TENSORS],
        bos_id=raw.get("tokenizer.ggml.bos_token_id"),
        eos_ids=eos_ids(raw),
    )


def gguf_scaling(raw: Mapping[str, Any], architecture: str, max_position: int) -> RopeScaling | None:
    """``rope.scaling.*`` of a header; raises StartupError."""
    prefix = f"{architecture}.rope.scaling."
    kind = raw.get(prefix + "type", "none")
    for key in ("attn_factor", "yarn_attn_factor"):
        if raw.get(prefix + key, 1.0) != 1.0:
            raise model_unsupported(f"{architecture} GGUF: rope.scaling.{key} {raw[prefix + key]} is not supported")
    if raw.get(prefix + "yarn_log_multiplier"):
        raise model_unsupported(f"{architecture} GGUF: rope.scaling.yarn_log_multiplier is not supported")
    named = {
        "rope_type": "default" if kind == "none" else kind,
        "factor": raw.get(prefix + "factor", 1.0),
        "original_max_position_embeddings": raw.get(prefix + "original_context_length"),
        "beta_fast": raw.get(prefix + "yarn_beta_fast"),
        "beta_slow": raw.get(prefix + "yarn_beta_slow"),
    }
    return rope_scaling(named, f"{architecture} GGUF", max_position)


def _scaling(raw: Mapping[str, Any], architecture: str, max_position: int, head_dim: int) -> RopeScaling | None:
    scaling = gguf_scaling(raw, architecture, max_position)
    factors = raw[ROPE_FACTORS]
    if not factors:
        return scaling
    if scaling is not None:
        raise model_unsupported(f"{architecture} GGUF: {ROPE_FACTORS_TENSOR} beside RoPE scaling {scaling.kind!r}")
    if len(factors) != head_dim // 2 or not all(factor > 0 for factor in factors):
        raise model_damaged(f"{ROPE_FACTORS_TENSOR} must hold {head_dim // 2} positive numbers, found {factors!r}")
    return RopeScaling("factors", 1.0, factors=factors)


def _first_layer_has(raw: Mapping[str, Any]) -> Callable[[str], bool]:
    return lambda name: NAMES[name].format(i=0) in raw[TENSORS]


FAMILY = Family(read_config, NAMES)
