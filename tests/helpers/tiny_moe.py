"""Tiny random mixtures of experts, saved as Hugging Face does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from helpers.tiny_families import save_random

_SHAPE: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 12, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
    "num_local_experts": 8,
}  # fmt: skip


def save_mixtral(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Mixtral of 8 experts, 2 per token; returns the Hugging Face model."""
    config = transformers.MixtralConfig(**(_SHAPE | overrides), attn_implementation="eager")
    return save_random(transformers.MixtralForCausalLM, config, folder, seed)


def save_qwen3_moe(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Qwen 3 of 8 experts, 3 per token, whose middle layer is dense."""
    values = _SHAPE | {
        "num_hidden_layers": 3, "mlp_only_layers": [1], "num_experts_per_tok": 3, "moe_intermediate_size": 20,
        "intermediate_size": 48, "norm_topk_prob": True,
    }  # fmt: skip
    config = transformers.Qwen3MoeConfig(**(values | overrides), attn_implementation="eager")
    return save_random(transformers.Qwen3MoeForCausalLM, config, folder, seed)
