"""What a ShiftDeployment asks for, as far as the simulator can tell what it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from shiftcore.layout import Gear, LayoutError, base_gear
from shiftcore.policy import Mode, Policy, PolicyError

from shiftsim import models
from shiftsim.errors import UserError
from shiftsim.left_out import left_out
from shiftsim.slo import Slo

KIND = "ShiftDeployment"
KV_MEMORY_PERCENT = (10, 95)
KV_CACHE_DTYPES = ("auto", "bfloat16")  # of GPUs both are the same
# In the name of a checkpoint: weights that no bundled shape has.
_OTHER_WEIGHTS = re.compile(
    r"(?<![a-z0-9])(awq|gptq|gguf|bnb|hqq|exl2|nvfp4|mxfp4|int[48]|w[48]a\d+|[48]bit|q[2-8]_\w+)(?![a-z0-9])"
)


@dataclass(frozen=True)
class Resource:
    """``model`` as the simulator names it; ``engine``: what spec.engine sets, by its own names; ``notes``: what is set,
    or on without being set, and not simulated."""

    name: str
    model: str
    gpus: int
    base: Gear
    policy: Policy
    slo: Slo
    engine: Mapping[str, int]
    notes: tuple[str, ...]


def read(path: Path, model: str | None = None) -> Resource:
    """The only ShiftDeployment of a file; ``model`` wins over its own. Raises UserError with the field's name."""
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    found = [document for document in documents if isinstance(document, dict) and document.get("kind") == KIND]
    if len(found) != 1:
        raise UserError(f"{path}: has {len(found)} of kind {KIND}, must have one; leave the others out")
    spec = _section(found[0], "spec", str(path))
    gpus, base = _gears(_section(spec, "parallelism", f"{path}: spec."))
    return Resource(
        name=str(_section(found[0], "metadata", f"{path}: ").get("name", path.stem)),
        model=model or _model(_section(spec, "model", f"{path}: spec.")),
        gpus=gpus,
        base=base,
        policy=_policy(_section(spec, "shift", f"{path}: spec.")),
        slo=_slo(_section(spec, "slo", f"{path}: spec.")),
        engine=_engine(_section(spec, "engine", f"{path}: spec.")),
        notes=left_out(spec),
    )


def _section(of: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = of.get(name) or {}
    if not isinstance(found, dict):
        raise UserError(f"{where}{name} is {found!r}; it must have fields of its own")
    return found


def _model(model: Mapping[str, Any]) -> str:
    named = f"{model.get('uri', '')} {model.get('servedName', '')}".lower()
    known = [name for name in models.names() if name in named]
    if not known:
        raise UserError(
            f"spec.model names {named.strip() or 'nothing'}, of which no shape is known; give --model with one of "
            f"{', '.join(models.names())} or with its config.json"
        )
    shape, asked = max(known, key=len), str(model.get("quantization") or "auto")
    other = _OTHER_WEIGHTS.search(named)
    if other or asked not in ("auto", "none", "fp8"):
        what = f"names {named.strip()}, with weights in {other[0]}," if other else f"has quantization {asked},"
        raise UserError(
            f"spec.model {what} whose cost is not known; give --model with the path of a config.json, or with "
            f"{shape}-fp8 or {shape} (bf16), whichever is nearer"
        )
    return shape + ("-fp8" if asked == "fp8" or (asked == "auto" and "fp8" in named) else "")


def _gears(parallelism: Mapping[str, Any]) -> tuple[int, Gear]:
    gpus = _whole("parallelism.gpus", parallelism.get("gpus"))
    sequence, tensor = (
        None if parallelism.get(name) is None else _whole(f"parallelism.{name}", parallelism[name])
        for name in ("sequence", "tensor")
    )
    try:
        return gpus, base_gear(gpus, sequence, tensor)
    except LayoutError as error:
        raise UserError(f"spec.parallelism: {error}") from error


def _policy(shift: Mapping[str, Any]) -> Policy:
    if shift.get("schedules"):
        raise UserError(
            "spec.shift.schedules changes the policy by the clock on the wall, which a trace does not have; take "
            "a copy with the policy of one window instead, and play the part of the trace in it with --start and --end"
        )
    mode = shift.get("policy", "Auto")
    if mode not in tuple(Mode):
        raise UserError(f"spec.shift.policy {mode!r} is unknown; use {', '.join(Mode)}")
    threshold = shift.get("thresholdTokens")
    try:
        return Policy(Mode(mode), None if threshold is None else _whole("shift.thresholdTokens", threshold))
    except PolicyError as error:
        raise UserError(f"spec.shift.thresholdTokens: {error}") from error


def _slo(slo: Mapping[str, Any]) -> Slo:
    if "ttftMs" not in slo and "tpotMs" not in slo:
        raise UserError("spec.slo has no target; set spec.slo.ttftMs, spec.slo.tpotMs or both")
    ttft, tpot = (_whole(f"slo.{name}", slo[name]) / 1000 if name in slo else None for name in ("ttftMs", "tpotMs"))
    return Slo(ttft, tpot, _whole("slo.percentile", slo.get("percentile", 95)))


def _engine(engine: Mapping[str, Any]) -> dict[str, int]:
    names = ("maxNumSeqs", "maxBatchedTokens", "maxModelLen", "gpuMemoryPercent")
    found = {name: _whole(f"engine.{name}", engine[name]) for name in names if name in engine}
    (low, high), percent = KV_MEMORY_PERCENT, found.get("gpuMemoryPercent")
    if percent is not None and not low <= percent <= high:
        raise UserError(f"spec.engine.gpuMemoryPercent {percent} must lie in {low}..{high}")
    if engine.get("kvCacheDtype", "auto") not in KV_CACHE_DTYPES:
        raise UserError(
            f"spec.engine.kvCacheDtype {engine['kvCacheDtype']!r} is unknown; use {', '.join(KV_CACHE_DTYPES)}, and "
            "--kv-cache fp8 to see what that would do"
        )
    return found


def _whole(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"spec.{field} is {value!r}; write a whole number from 1")
    return value
