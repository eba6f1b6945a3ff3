"""What would have to change for the autoscaler to decide the other way, told from spec and status alone.

The figures are those of docs/AUTOSCALING.md's rules; tokens per second are rounded, as capacities are.
"""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore import scaling
from shiftcore.layout import Gear, LayoutError, tp_gear

from shiftoperator.kubectl.resource import Deployment, Object

_DEFAULTS = scaling.Limits()


@dataclass(frozen=True)
class Marks:
    """Where the rules change their mind. Marks are in percent, times in seconds."""

    deployment: Deployment
    minimum: int
    maximum: int | None
    max_gpus: int | None
    high: int
    low: int
    shifted: int
    kv: int
    out_seconds: int
    in_seconds: int
    ttft_seconds: float | None
    tpot_ms: int | None


def marks(deployment: Deployment) -> Marks:
    asked = deployment.part("autoscaling")
    shift: Object = asked.get("shiftBeforeScale") or {}
    windows: Object = asked.get("windows") or {}
    slo = deployment.part("slo")
    return Marks(
        deployment=deployment,
        minimum=asked.get("min", _DEFAULTS.minimum),
        maximum=asked.get("max"),
        max_gpus=asked.get("maxGpus"),
        high=shift.get("highUtilizationPercent", round(_DEFAULTS.high_utilisation * 100)),
        low=shift.get("lowUtilizationPercent", round(_DEFAULTS.low_utilisation * 100)),
        shifted=shift.get("shiftedSharePercent", round(_DEFAULTS.shifted_share * 100)),
        kv=shift.get("kvPressurePercent", round(_DEFAULTS.kv_pressure * 100)),
        out_seconds=windows.get("scaleOutSeconds", round(_DEFAULTS.out_seconds)),
        in_seconds=windows.get("scaleInSeconds", round(_DEFAULTS.in_seconds)),
        ttft_seconds=slo["ttftMs"] / 1000 if "ttftMs" in slo else None,
        tpot_ms=slo.get("tpotMs"),
    )


def opposite(deployment: Deployment, decision: Object) -> str:
    """Of a decision in the status. Empty when it says not which way it went."""
    source, target, reason = decision.get("from"), decision.get("to"), decision.get("reason", "")
    found = marks(deployment)
    if source is None or target is None or source == target:
        return ""
    if reason == scaling.Reason.BELOW_MINIMUM and found.minimum > source:
        return f"lower autoscaling.min (now {found.minimum}) to {source}; " + to_remove(found)
    if reason == scaling.Reason.ABOVE_MAXIMUM and (found.maximum or source) < source:
        return f"raise autoscaling.max (now {_said(found.maximum)}) to {source}; " + to_add(found)
    if reason == scaling.Reason.GPU_BUDGET and target < source:
        needed = source * gpus_held(deployment)
        return f"raise autoscaling.maxGpus (now {_said(found.max_gpus)}) to {needed}; " + to_add(found)
    if reason == scaling.Reason.METRICS_LOST:
        return "every ready pod reports its load again; " + to_remove(found)
    return to_remove(found) if target > source else to_add(found)


def to_add(found: Marks) -> str:
    """When a pod is added."""
    replicas = found.deployment.replicas
    gate = f"demand is at {found.high}% of the throughput capacity{_tokens(found, found.high, replicas)}"
    if found.deployment.part("shift").get("policy", "Auto") == "Auto" and found.deployment.gpus > 1:
        gate += f" and {found.shifted}% of the recent tokens ran in that gear"
    wait = found.ttft_seconds or _DEFAULTS.default_ttft_seconds
    past = [
        f"a request waits longer than {wait:g} s",
        "all slots of a pod run and more wait",
        f"a KV cache is {found.kv}% full",
    ]
    if found.tpot_ms is not None:
        past.append(f"TPOT exceeds {found.tpot_ms} ms")
    said = f"a pod is added when {gate}, or whatever the gear: {', or '.join(past)}"
    said += f"; and that holds for {found.out_seconds} s"
    return said + _upper_bound(found, replicas)


def to_remove(found: Marks) -> str:
    """When a pod is taken away."""
    replicas = found.deployment.replicas
    if replicas <= found.minimum:
        return f"a pod leaves only when autoscaling.min is below {replicas}, the size asked for (now {found.minimum})"
    stay = replicas - 1
    said = "a pod leaves when no request runs or waits"
    if stay:
        left = "the one that is left" if stay == 1 else f"the {stay} that are left"
        limit = f"{found.low}% of the throughput capacity{_tokens(found, found.low, stay)}"
        said += f", or when {left} would stay at or below {limit}, fill slots and KV cache no more than that"
        if found.ttft_seconds is not None or found.tpot_ms is not None:
            said += f" and meet {round(_DEFAULTS.slo_margin * 100)}% of the targets"
    return f"{said}; and that holds for {found.in_seconds} s"


def _upper_bound(found: Marks, replicas: int) -> str:
    needed = (replicas + 1) * gpus_held(found.deployment)
    if found.maximum is not None and replicas >= found.maximum:
        return f". autoscaling.max (now {found.maximum}) must be raised first"
    if found.max_gpus is not None and needed > found.max_gpus:
        return f". autoscaling.maxGpus (now {found.max_gpus}) must be raised to {needed} first"
    return ""


def _tokens(found: Marks, percent: int, pods: int) -> str:
    """That share of what so many pods compute; nothing where no pod measured it."""
    gear = throughput_gear(found.deployment)
    measured: Object = next((c for c in found.deployment.status.get("capacity") or () if c["gear"] == gear), {})
    by, capacity = measured.get("pods", 0), measured.get("tokensPerSecond", 0)
    if by <= 0 or capacity <= 0:
        return ""
    return f" (about {_two_digits(capacity * pods * percent // (by * 100)):,} tokens/s with {pods} in {gear})"


def throughput_gear(deployment: Deployment) -> str:
    """Against whose capacity the autoscaler measures."""
    parallelism, gpus = deployment.part("parallelism"), deployment.gpus
    if deployment.part("shift").get("policy") == "Latency":
        return tp_gear(gpus).name
    tensor = parallelism.get("tensor") or gpus // (parallelism.get("sequence") or gpus) or 1
    return Gear(parallelism.get("sequence") or max(1, gpus // tensor), tensor).name


def gpus_held(deployment: Deployment) -> int:
    """By the largest pod, as the gears tell that pods measured: after a rollback not what the spec says."""
    measured = [_ranks(c["gear"]) for c in deployment.status.get("capacity") or ()]
    return max(measured, default=0) or deployment.gpus


def _ranks(gear: str) -> int:
    """0 where this is no gear."""
    try:
        return Gear.parse(gear).ranks
    except LayoutError:
        return 0


def _two_digits(value: int) -> int:
    step: int = 10 ** max(0, len(str(value)) - 2)
    return value // step * step


def _said(bound: int | None) -> str:
    return "unset" if bound is None else str(bound)
