"""RoPE as configurations name it: ``rope_parameters`` of today and the older ``rope_scaling`` with ``rope_theta``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shiftruntime.config import RopeScaling
from shiftruntime.errors import model_damaged, model_unsupported

SUPPORTED = ("default", "linear", "llama3", "yarn")
_PARTIAL = "partial_rotary_factor"
_LAYER_TYPES = ("full_attention", "sliding_attention")


def rope_parameters(
    raw: Mapping[str, Any], layer_type: str = "full_attention", theta: float = 10_000.0
) -> dict[str, Any]:
    """The parameters of one layer type with ``rope_theta`` filled in; raises StartupError(ModelDamaged).

    ``theta`` is what the family means when config.json names no base.
    """
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if any(kind in given for kind in _LAYER_TYPES):
        given = given.get(layer_type) or {}
    if not isinstance(given, Mapping):
        raise model_damaged(f"config.json: the RoPE parameters must be an object, found {given!r}")
    base = raw.get("rope_theta")
    outer = {"rope_theta": theta if base is None else base}
    if raw.get(_PARTIAL) is not None:  # beside the parameters it counts as well
        outer[_PARTIAL] = raw[_PARTIAL]
    return outer | dict(given)


def rope_theta(parameters: Mapping[str, Any]) -> float:
    """Raises StartupError(ModelDamaged)."""
    value = parameters["rope_theta"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 1:
        raise model_damaged(f"config.json: rope_theta must be a number above 1, found {value!r}")
    return float(value)


def rope_scaling(parameters: Mapping[str, Any], architecture: str, max_position: int = 0) -> RopeScaling | None:
    """From the parameters of one layer type; raises StartupError(ModelUnsupported) for a kind we do not have.

    ``max_position`` stands for the original context where the parameters leave it out.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters.get(_PARTIAL, 1.0) != 1.0:
        raise model_unsupported(f"{architecture}: {_PARTIAL} {parameters[_PARTIAL]!r} is not supported, only 1")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(parameters["factor"]))
    original = int(parameters.get("original_max_position_embeddings") or max_position)
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(parameters["factor"]),
            float(parameters["low_freq_factor"]),
            float(parameters["high_freq_factor"]),
            original,
        )
    if kind == "yarn":
        return _yarn(parameters, original, max_position)
    raise model_unsupported(
        f"{architecture}: RoPE scaling {kind!r} is not supported; supported: {', '.join(SUPPORTED)}"
    )


def context_length(max_position: int, scaling: RopeScaling | None) -> int:
    """Tokens the model can read; a yarn configuration often leaves the length before stretching in its file."""
    if scaling is None or scaling.kind != "yarn":
        return max_position
    return max(max_position, int(scaling.original_max_position * scaling.factor))


def _yarn(parameters: Mapping[str, Any], original: int, max_position: int) -> RopeScaling:
    factor = float(parameters.get("factor") or max_position / original)
    attention = parameters.get("attention_factor")
    return RopeScaling(
        "yarn",
        factor,
        original_max_position=original,
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=bool(parameters.get("truncate", True)),
        attention_factor=_attention_factor(factor, parameters) if attention is None else float(attention),
    )


def _attention_factor(factor: float, parameters: Mapping[str, Any]) -> float:
    """How much sharper attention must be in a context stretched by ``factor`` (YaRN; DeepSeek's two mscales)."""

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    numerator, denominator = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if numerator and denominator:
        return mscale(float(numerator)) / mscale(float(denominator))
    return mscale(1.0)
