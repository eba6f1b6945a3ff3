"""What a ShiftDeployment sets, or has on without setting it, and no replay of it knows of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SIMULATED: Mapping[str, tuple[str, ...]] = {
    "model": ("uri", "servedName", "quantization"),
    "parallelism": ("gpus", "sequence", "tensor"),
    "shift": ("policy", "thresholdTokens"),
    "engine": ("maxNumSeqs", "maxBatchedTokens", "maxModelLen", "gpuMemoryPercent", "prefixCaching", "kvCacheDtype"),
    "slo": ("ttftMs", "tpotMs", "percentile"),
}
# What holds in place of a field, where it changes how fast or how many pods are.
INSTEAD = {
    "model.dtype": "weights are as the name of the model or its config.json says",
    "shift.adaptive": "the threshold stays where it is",
    "shift.calibration": "every pod knows its costs",
    "replicas": "the size is what is looked for",
    "autoscaling": "the size does not change; see shift-sim autoscale",
}
_PREFIX_CACHING = (
    "prefix caching is not simulated, and on in pods unless spec.engine.prefixCaching is false: every prompt is "
    "computed whole here, so that prompts with equal beginnings may need less"
)


def left_out(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each that has an effect on speed or size, and one with the names of the others."""
    fields = list(_not_simulated(spec))
    found = [f"spec.{name} is not simulated: {INSTEAD[name]}" for name in fields if name in INSTEAD]
    if (spec.get("engine") or {}).get("prefixCaching") is not False:
        found.append(_PREFIX_CACHING)
    others = [f"spec.{name}" for name in fields if name not in INSTEAD]
    return (*found, *([f"not simulated: {', '.join(others)}"] if others else []))


def _not_simulated(spec: Mapping[str, Any]) -> Iterator[str]:
    for section, content in spec.items():
        if section not in SIMULATED:
            if not _off(content):
                yield section
            continue
        left = {name: value for name, value in (content or {}).items() if name not in SIMULATED[section]}
        yield from (f"{section}.{name}" for name, value in left.items() if not _off(value))


def _off(value: object) -> bool:
    return value in (None, False, {}, [], "auto") or (isinstance(value, Mapping) and value.get("mode") == "Off")
