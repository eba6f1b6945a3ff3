"""Mixtral, as safetensors from Hugging Face: a Mistral whose FFNs are experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftruntime.config import Experts, ModelConfig
from shiftruntime.models.family import Family, required
from shiftruntime.models.hf_config import LAYER, NAMES, WHERE, common_values, sliding_values

ARCHITECTURES = ("MixtralForCausalLM",)
_THETA = 1_000_000.0  # what a file without the key means, as the next two
_EXPERTS = 8
_PER_TOKEN = 2

_MOE = LAYER + "block_sparse_moe."
MIXTRAL_NAMES = NAMES | {
    "router": _MOE + "gate.weight",
    "expert_gate": _MOE + "experts.{e}.w1.weight",
    "expert_up": _MOE + "experts.{e}.w3.weight",
    "expert_down": _MOE + "experts.{e}.w2.weight",
}
FUSED = {
    "router": (LAYER + "mlp.gate.weight", None),
    "expert_gate": (LAYER + "mlp.experts.gate_up_proj", 0),
    "expert_up": (LAYER + "mlp.experts.gate_up_proj", 1),
    "expert_down": (LAYER + "mlp.experts.down_proj", None),
}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """From config.json; raises StartupError."""
    raw = {"num_local_experts": _EXPERTS, "num_experts_per_tok": _PER_TOKEN} | dict(raw)
    values = common_values(raw, rope_theta=_THETA)
    every_layer = (True,) * values["num_layers"]
    experts = Experts(
        count=required(raw, "num_local_experts", int, WHERE),
        per_token=required(raw, "num_experts_per_tok", int, WHERE),
        intermediate_size=values["intermediate_size"],
        sparse_layers=every_layer,
    )
    return ModelConfig(experts=experts, **values, **sliding_values(raw, raw.get("sliding_window"), every_layer))


FAMILY = Family(read_config, MIXTRAL_NAMES, FUSED)
