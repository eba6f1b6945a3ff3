"""`spec.replicas`, `spec.autoscaling` and `spec.slo`: how many pods, and for which targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shiftcore.scaling import Limits, MetricsLoss, Mode

from shiftoperator.errors import InvalidSpecError
from shiftoperator.spec.asked import percentile_asked, replicas_asked

# At which the pods report their times.
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Autoscaling:
    mode: Mode
    limits: Limits
    # How long a pod that is to leave may take to finish what it runs.
    drain_seconds: float = 300.0
    # At which the targets are to hold.
    percentile: int = 95


def replicas(spec: dict[str, Any]) -> int:
    if spec.get("replicas", 1) != replicas_asked(spec):
        raise InvalidSpecError(f"replicas {spec['replicas']!r} is no number of pods; write a whole number from 0")
    return replicas_asked(spec)


def autoscaling(spec: dict[str, Any]) -> Autoscaling:
    asked, slo = spec.get("autoscaling", {}), spec.get("slo", {})
    mode = Mode(asked.get("mode", "Disabled"))
    minimum = asked.get("min", 1)
    maximum = asked.get("max", minimum)
    if minimum > maximum:
        raise InvalidSpecError(f"autoscaling.min {minimum} is above max {maximum}; lower min or raise max")
    if mode is not Mode.DISABLED and "max" not in asked:
        raise InvalidSpecError(f"autoscaling.mode {mode} needs autoscaling.max; set the most pods you can pay for")
    gpus, budget = spec.get("parallelism", {}).get("gpus", 0), asked.get("maxGpus")
    if budget is not None and budget < minimum * gpus:
        raise InvalidSpecError(
            f"autoscaling.maxGpus {budget} does not pay for autoscaling.min {minimum} pods of {gpus} GPUs; "
            f"raise it to {minimum * gpus} or lower min"
        )
    windows, shifting = asked.get("windows", {}), _shift_before_scale(asked.get("shiftBeforeScale", {}))
    limits = Limits(
        minimum=minimum,
        maximum=maximum,
        gpus_per_pod=gpus,
        max_gpus=budget,
        out_seconds=windows.get("scaleOutSeconds", 30),
        in_seconds=windows.get("scaleInSeconds", 300),
        pod_start_seconds=windows.get("podStartSeconds", 600),
        ttft_seconds=slo["ttftMs"] / 1000 if "ttftMs" in slo else None,
        tpot_seconds=slo["tpotMs"] / 1000 if "tpotMs" in slo else None,
        may_shift=spec.get("shift", {}).get("policy", "Auto") == "Auto",
        on_metrics_loss=MetricsLoss(asked.get("onMetricsLoss", "Hold")),
        **shifting,
    )
    return Autoscaling(mode, limits, windows.get("drainSeconds", 300), _percentile(spec))


def _percentile(spec: dict[str, Any]) -> int:
    percentile = percentile_asked(spec)
    if percentile not in PERCENTILES:
        raise InvalidSpecError(
            f"slo.percentile {percentile} is not reported by the pods; use {', '.join(map(str, PERCENTILES))}"
        )
    return percentile


def _shift_before_scale(percents: dict[str, Any]) -> dict[str, Any]:
    """Fields of Limits, as fractions of 1."""
    high, low = percents.get("highUtilizationPercent", 80), percents.get("lowUtilizationPercent", 50)
    if low >= high:
        raise InvalidSpecError(
            f"autoscaling.shiftBeforeScale.lowUtilizationPercent {low} must be below highUtilizationPercent {high}, "
            "or pods would come and go"
        )
    return {
        "high_utilisation": high / 100,
        "low_utilisation": low / 100,
        "shifted_share": percents.get("shiftedSharePercent", 50) / 100,
        "kv_pressure": percents.get("kvPressurePercent", 90) / 100,
    }
