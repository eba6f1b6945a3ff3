"""A ShiftDeployment's spec, parsed and checked once.

The CRD refuses bad specs at `kubectl apply`. What it refuses is refused here again, because a resource may have been
stored under an older CRD.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shiftcore.layout import Gear
from shiftcore.scaling import Limits, MetricsLoss, Mode
from shiftprotos import contract

from shiftoperator.errors import InvalidSpecError

_CLAIM_URI = re.compile(r"pvc://([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)/(\S*)")
# At which the pods report their times.
PERCENTILES = (50, 90, 95, 99)
# Above it hardly any step is larger.
DEFAULT_ADAPTIVE_MAX = 8192
POLICIES = ("Auto", "Latency", "Throughput")


@dataclass(frozen=True)
class Model:
    uri: str
    served_name: str | None = None
    dtype: str = "auto"

    @property
    def claim(self) -> str | None:
        """The PersistentVolumeClaim that holds the model, if the URI names one."""
        match = _CLAIM_URI.fullmatch(self.uri)
        return match[1] if match else None

    def path(self, claim_mount: str) -> str:
        """Where the runtime finds the model inside its container."""
        match = _CLAIM_URI.fullmatch(self.uri)
        if match:
            return f"{claim_mount}/{match[2]}".rstrip("/")
        return self.uri.removeprefix("file://")


@dataclass(frozen=True)
class Policy:
    """The shift policy as a user sets it; the generation is the operator's business."""

    mode: str = "Auto"
    threshold_tokens: int | None = None

    def as_status(self) -> dict[str, Any]:
        status: dict[str, Any] = {"mode": self.mode}
        if self.threshold_tokens is not None:
            status["thresholdTokens"] = self.threshold_tokens
        return status


class AdaptiveMode(StrEnum):
    OFF = "Off"
    RECOMMEND = "Recommend"
    APPLY = "Apply"


@dataclass(frozen=True)
class Adaptive:
    """Bounds between which the threshold may be moved by what was measured of the targets; tokens per step."""

    mode: AdaptiveMode = AdaptiveMode.OFF
    min_tokens: int = contract.MIN_THRESHOLD_TOKENS
    max_tokens: int = DEFAULT_ADAPTIVE_MAX


@dataclass(frozen=True)
class Engine:
    max_num_seqs: int | None = None
    max_batched_tokens: int | None = None
    max_model_len: int | None = None


@dataclass(frozen=True)
class Runtime:
    image: str | None = None
    device: str = "cpu"
    resources: dict[str, Any] = field(default_factory=dict)
    env: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Autoscaling:
    mode: Mode
    limits: Limits
    # How long a pod that is to leave may take to finish what it runs.
    drain_seconds: float = 300.0
    # At which the targets are to hold.
    percentile: int = 95


class Strategy(StrEnum):
    NO_SURGE = "NoSurge"
    SURGE = "Surge"


@dataclass(frozen=True)
class Rollout:
    strategy: Strategy = Strategy.NO_SURGE
    paused: bool = False
    # A pod of a new revision that is not ready for so long makes the revision a bad one.
    progress_deadline_seconds: int = 1800
    # For so long a pod that ends may finish what it runs.
    drain_seconds: int = contract.DEFAULT_DRAIN_SECONDS
    auto_rollback: bool = True


@dataclass(frozen=True)
class Spec:
    model: Model
    base_gear: Gear
    policy: Policy
    adaptive: Adaptive
    engine: Engine
    runtime: Runtime
    pod_template: dict[str, Any]
    replicas: int
    autoscaling: Autoscaling
    rollout: Rollout
    # Ready pods that an eviction may take away at once.
    max_unavailable: int
    suspend: bool
    # That should run: none while suspended, whatever `replicas` says.
    pods: int

    @property
    def gpus(self) -> int:
        return self.base_gear.ranks


def parse(spec: dict[str, Any]) -> Spec:
    """Raises InvalidSpecError with the offending value and the fix."""
    try:
        return _parse(spec)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Only past another CRD: ours has the type of every field.
        raise InvalidSpecError(
            f"a field has not the type that the CRD gives it: {error}; apply the CRD anew"
        ) from error


def _parse(spec: dict[str, Any]) -> Spec:
    shift, engine, runtime = spec.get("shift", {}), spec.get("engine", {}), spec.get("runtime", {})
    return Spec(
        model=_model(spec.get("model", {})),
        base_gear=_base_gear(spec.get("parallelism", {})),
        policy=_policy(shift),
        adaptive=_adaptive(spec),
        engine=Engine(engine.get("maxNumSeqs"), engine.get("maxBatchedTokens"), engine.get("maxModelLen")),
        runtime=Runtime(
            runtime.get("image"),
            runtime.get("device", "cpu"),
            runtime.get("resources", {}),
            tuple(runtime.get("env", ())),
        ),
        pod_template=spec.get("podTemplate", {}),
        replicas=_replicas(spec),
        autoscaling=_autoscaling(spec),
        rollout=_rollout(spec.get("rollout", {})),
        max_unavailable=spec.get("disruption", {}).get("maxUnavailable", 1),
        suspend=bool(spec.get("suspend", False)),
        pods=pods_asked(spec),
    )


def pods_asked(spec: dict[str, Any]) -> int:
    """Of a spec that need not be valid otherwise."""
    return 0 if spec.get("suspend") else replicas_asked(spec)


def replicas_asked(spec: dict[str, Any]) -> int:
    """Of a spec that need not be valid otherwise."""
    replicas = spec.get("replicas", 1)
    return max(0, replicas) if isinstance(replicas, int) else 0


def section(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a spec that need not be valid otherwise; empty when it is no object."""
    found = spec.get(name)
    return found if isinstance(found, dict) else {}


def percentile_asked(spec: dict[str, Any]) -> int:
    """At which the targets are to hold; of a spec that need not be valid otherwise."""
    percentile = slo.get("percentile", 95) if isinstance(slo := spec.get("slo"), dict) else 95
    return percentile if isinstance(percentile, int) else 95


def _replicas(spec: dict[str, Any]) -> int:
    if spec.get("replicas", 1) != replicas_asked(spec):
        raise InvalidSpecError(f"replicas {spec['replicas']!r} is no number of pods; write a whole number from 0")
    return replicas_asked(spec)


def _model(model: dict[str, Any]) -> Model:
    uri = model.get("uri", "")
    if not _CLAIM_URI.fullmatch(uri) and not re.fullmatch(r"file:///\S+", uri):
        raise InvalidSpecError(f"model.uri {uri!r} cannot be read; write pvc://CLAIM/PATH or file:///PATH")
    if ".." in uri.split("/"):
        raise InvalidSpecError(f"model.uri {uri!r} leaves its volume; remove the '..'")
    return Model(uri, model.get("servedName"), model.get("dtype", "auto"))


def _base_gear(parallelism: dict[str, Any]) -> Gear:
    gpus = parallelism.get("gpus", 0)
    if not 1 <= gpus <= contract.MAX_GPUS:
        raise InvalidSpecError(f"parallelism.gpus {gpus} must lie in 1..{contract.MAX_GPUS}")
    sequence, tensor = parallelism.get("sequence"), parallelism.get("tensor")
    if sequence is None:
        sequence = gpus // (tensor or 1)
    if tensor is None:
        tensor = gpus // sequence
    if sequence * tensor != gpus:
        raise InvalidSpecError(
            f"sequence {sequence} × tensor {tensor} = {sequence * tensor}, but gpus is {gpus}; "
            "the product must equal gpus, or leave one of them out"
        )
    return Gear(sequence, tensor)


def _policy(shift: dict[str, Any]) -> Policy:
    mode, threshold = shift.get("policy", "Auto"), shift.get("thresholdTokens")
    if mode not in POLICIES:
        raise InvalidSpecError(f"shift.policy {mode!r} is unknown; use {', '.join(POLICIES)}")
    lowest, highest = contract.MIN_THRESHOLD_TOKENS, contract.MAX_THRESHOLD_TOKENS
    if threshold is not None and not lowest <= threshold <= highest:
        raise InvalidSpecError(f"shift.thresholdTokens {threshold} must lie in {lowest}..{highest}")
    return Policy(mode, threshold)


def _adaptive(spec: dict[str, Any]) -> Adaptive:
    shift, slo = spec.get("shift", {}), spec.get("slo", {})
    asked = shift.get("adaptive", {})
    mode = AdaptiveMode(asked.get("mode", "Off"))
    lowest, highest = (
        asked.get("minTokens", contract.MIN_THRESHOLD_TOKENS),
        asked.get("maxTokens", DEFAULT_ADAPTIVE_MAX),
    )
    if not contract.MIN_THRESHOLD_TOKENS <= lowest <= highest <= contract.MAX_THRESHOLD_TOKENS:
        raise InvalidSpecError(
            f"shift.adaptive.minTokens {lowest} and maxTokens {highest} must be ascending and lie in "
            f"{contract.MIN_THRESHOLD_TOKENS}..{contract.MAX_THRESHOLD_TOKENS}"
        )
    if mode is AdaptiveMode.OFF:
        return Adaptive(mode, lowest, highest)
    if shift.get("policy", "Auto") != "Auto":
        raise InvalidSpecError(f"shift.adaptive moves a threshold, which policy {shift['policy']} has not; use Auto")
    if "ttftMs" not in slo or "tpotMs" not in slo:
        raise InvalidSpecError("shift.adaptive weighs slo.ttftMs against slo.tpotMs; set both")
    return Adaptive(mode, lowest, highest)


def _rollout(rollout: dict[str, Any]) -> Rollout:
    drain = rollout.get("drainSeconds", Rollout.drain_seconds)
    if not 0 <= drain <= contract.MAX_DRAIN_SECONDS:
        raise InvalidSpecError(f"rollout.drainSeconds {drain} must lie in 0..{contract.MAX_DRAIN_SECONDS}")
    return Rollout(
        strategy=Strategy(rollout.get("strategy", Rollout.strategy)),
        paused=rollout.get("paused", False),
        progress_deadline_seconds=rollout.get("progressDeadlineSeconds", Rollout.progress_deadline_seconds),
        drain_seconds=drain,
        auto_rollback=rollout.get("autoRollback", True),
    )


def _autoscaling(spec: dict[str, Any]) -> Autoscaling:
    autoscaling, slo = spec.get("autoscaling", {}), spec.get("slo", {})
    mode = Mode(autoscaling.get("mode", "Disabled"))
    minimum = autoscaling.get("min", 1)
    maximum = autoscaling.get("max", minimum)
    if minimum > maximum:
        raise InvalidSpecError(f"autoscaling.min {minimum} is above max {maximum}; lower min or raise max")
    if mode is not Mode.DISABLED and "max" not in autoscaling:
        raise InvalidSpecError(f"autoscaling.mode {mode} needs autoscaling.max; set the most pods you can pay for")
    gpus, budget = spec.get("parallelism", {}).get("gpus", 0), autoscaling.get("maxGpus")
    if budget is not None and budget < minimum * gpus:
        raise InvalidSpecError(
            f"autoscaling.maxGpus {budget} does not pay for autoscaling.min {minimum} pods of {gpus} GPUs; "
            f"raise it to {minimum * gpus} or lower min"
        )
    windows, shifting = autoscaling.get("windows", {}), _shift_before_scale(autoscaling.get("shiftBeforeScale", {}))
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
        on_metrics_loss=MetricsLoss(autoscaling.get("onMetricsLoss", "Hold")),
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


def _shift_before_scale(percents: dict[str, Any]) -> dict[str, float]:
    """As fractions of 1."""
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
