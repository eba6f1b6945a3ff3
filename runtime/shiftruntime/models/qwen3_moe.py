"""Qwen 3 with experts in all or some layers, as safetensors from Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftruntime.config import Experts, ModelConfig
from shiftruntime.models.family import Family, required
from shiftruntime.models.hf_config import LAYER, NAMES, WHERE, common_values, optional, sliding_values
from shiftruntime.models.mixtral import FUSED

ARCHITECTURES = ("Qwen3MoeForCausalLM",)
_PER_TOKEN = 8  # what a file without the key means

_MOE = LAYER + "mlp."
QWEN3_MOE_NAMES = NAMES | {
    "router": _MOE + "gate.weight",
    "expert_gate": _MOE + "experts.{e}.gate_proj.weight",
    "expert_up": _MOE + "experts.{e}.up_proj.weight",
    "expert_down": _MOE + "experts.{e}.down_proj.weight",
}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From config.json; raises StartupError."""
    values = common_values(raw)
    biased = bool(raw.get("attention_bias", False))
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None
    return ModelConfig(
        qk_norm=True,
        attention_bias=biased,
        output_bias=biased,
        experts=_experts(raw, values["num_layers"]),
        **values,
        **sliding_values(raw, window, (True,) * values["num_layers"]),
    )


def _experts(raw: Mapping[str, Any], layers: int) -> Experts | None:
    """Dense are the layers of ``mlp_only_layers``, and those that ``decoder_sparse_step`` leaves out."""
    count = required(raw, "num_experts" if "num_experts" in raw else "num_local_experts", int, WHERE)
    dense, step = raw.get("mlp_only_layers") or (), optional(raw, "decoder_sparse_step", 1)
    sparse = tuple(count > 0 and i not in dense and (i + 1) % step == 0 for i in range(layers))
    if not any(sparse):
        return None
    return Experts(
        count=count,
        per_token=optional(raw, "num_experts_per_tok", _PER_TOKEN),
        intermediate_size=required(raw, "moe_intermediate_size", int, WHERE),
        sparse_layers=sparse,
        normalised=bool(raw.get("norm_topk_prob", False)),
    )


FAMILY = Family(read_config, QWEN3_MOE_NAMES, FUSED)
