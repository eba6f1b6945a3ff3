"""What the autoscaler is told and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    DISABLED = "Disabled"
    RECOMMEND = "Recommend"
    APPLY = "Apply"


class MetricsLoss(StrEnum):
    """What to do when ready pods do not report their load."""

    HOLD = "Hold"
    SCALE_TO_MAX = "ScaleToMax"


class Action(StrEnum):
    OUT = "ScaleOut"
    IN = "ScaleIn"
    HOLD = "Hold"


class Reason(StrEnum):
    """Why; docs/CONDITIONS.md says of each what to do, docs/AUTOSCALING.md has the rules."""

    # Bounds.
    BELOW_MINIMUM = "BelowMinimum"
    ABOVE_MAXIMUM = "AboveMaximum"
    AT_MAXIMUM = "AtMaximum"
    GPU_BUDGET = "GpuBudget"
    # What cannot be known, or is under way.
    PODS_STARTING = "PodsStarting"
    CAPACITY_COMING = "CapacityComing"
    METRICS_STALE = "MetricsStale"
    METRICS_LOST = "MetricsLost"
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    # Out.
    QUEUE_TOO_OLD = "QueueTooOld"
    SLOTS_FULL = "SlotsFull"
    KV_PRESSURE = "KvPressure"
    OUTPUT_TOO_SLOW = "OutputTooSlow"
    HIGH_UTILISATION = "HighUtilisation"
    SHIFT_FIRST = "ShiftFirst"
    # In.
    IDLE = "Idle"
    LOW_UTILISATION = "LowUtilisation"
    SURVIVORS_TOO_SLOW = "SurvivorsTooSlow"
    STEADY = "Steady"


@dataclass(frozen=True)
class Limits:
    """What the user asks for, and the margins of the rules. Shares and utilisations are fractions of 1."""

    minimum: int = 1
    maximum: int = 1
    # That a pod of the revision which should run holds: what may stay is counted so.
    gpus_per_pod: int = 1
    # That the largest pod holds which is there, leaves or may come back, where it is larger: what may come is counted
    # so.
    largest_pod_gpus: int = 0
    # GPUs that all pods together may hold; None: as many as `maximum` pods have. It may pay for fewer pods than the
    # minimum while those of another revision run: then none is added, and the minimum stays.
    max_gpus: int | None = None
    out_seconds: float = 30.0
    in_seconds: float = 300.0
    # A pod that was ordered is credited as coming capacity for so long.
    pod_start_seconds: float = 600.0
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    # Whether shifting can still raise capacity: not when the policy pins a gear.
    may_shift: bool = True
    high_utilisation: float = 0.8
    # Survivors of a scale-in must stay below this, well under `high_utilisation`, or pods would come and go.
    low_utilisation: float = 0.5
    kv_pressure: float = 0.9
    # Share of recent tokens in the throughput gear from which pods count as shifted.
    shifted_share: float = 0.5
    on_metrics_loss: MetricsLoss = MetricsLoss.HOLD
    stale_seconds: float = 15.0
    # A queue is to be worked off within this where the user set no TTFT target.
    default_ttft_seconds: float = 5.0
    # Survivors are to meet this share of a target: what is estimated must not be missed by its own error.
    slo_margin: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"minimum {self.minimum} must lie in 0..maximum {self.maximum}")
        if self.gpus_per_pod < 1:
            raise ValueError(f"gpus_per_pod {self.gpus_per_pod} must be at least 1")
        if not 0 <= self.low_utilisation < self.high_utilisation:
            raise ValueError(
                f"low_utilisation {self.low_utilisation} must be below high_utilisation {self.high_utilisation}"
            )

    @property
    def budget(self) -> int:
        """Pods that the GPU budget pays for."""
        return self._paid_for(self.gpus_per_pod)

    @property
    def new_pod_gpus(self) -> int:
        """What room for one more pod is counted by."""
        return max(self.gpus_per_pod, self.largest_pod_gpus)

    @property
    def room(self) -> int:
        """Pods that the GPU budget pays for, each as large as the largest."""
        return self._paid_for(self.new_pod_gpus)

    def _paid_for(self, gpus: int) -> int:
        """Pods of so many GPUs each."""
        return self.maximum if self.max_gpus is None else self.max_gpus // gpus

    @property
    def ceiling(self) -> int:
        """Pods that may stay; the minimum is not given up for the budget."""
        return min(self.maximum, max(self.minimum, self.budget))

    @property
    def wait_seconds(self) -> float:
        return self.ttft_seconds or self.default_ttft_seconds


@dataclass(frozen=True)
class PodLoad:
    """One ready pod at one moment."""

    name: str
    measured_at: float
    prompt_tokens_per_second: float = 0.0
    output_tokens_per_second: float = 0.0
    waiting_tokens: int = 0
    running_requests: int = 0
    waiting_requests: int = 0
    max_running_requests: int = 0
    oldest_wait_seconds: float = 0.0
    kv_used_fraction: float = 0.0
    # At the percentile of the targets, over the last minute; 0 when nothing was measured.
    ttft_seconds: float = 0.0
    tpot_seconds: float = 0.0
    # Tokens per second in the throughput gear; 0 when it was not measured.
    capacity_tokens_per_second: float = 0.0
    # The smallest measured step in the throughput gear; 0 when it was not measured.
    step_seconds: float = 0.0
    # Share of recently computed tokens in the throughput gear; 1 when the pod has a single gear.
    throughput_share: float = 1.0

    def demand_tokens_per_second(self, wait_seconds: float) -> float:
        """What arrives and what is made, and the queue if it is to be worked off in time."""
        return self.prompt_tokens_per_second + self.output_tokens_per_second + self.waiting_tokens / wait_seconds

    @property
    def idle(self) -> bool:
        return self.running_requests == 0 and self.waiting_requests == 0


@dataclass(frozen=True)
class Observation:
    """`replicas` are asked for, `ready` serve, `pods` are the ready ones whose load is known, longest ready first."""

    replicas: int
    ready: int
    pods: tuple[PodLoad, ...]
    # Of each pod that exists and is not ready: for how long.
    starting_seconds: tuple[float, ...] = ()
    # Pods on their way out, which still hold their GPUs.
    stopping: int = 0
    # Pods of an older template are being replaced.
    rolling: bool = False

    @property
    def missing(self) -> int:
        return max(0, self.replicas - self.ready)

    @property
    def uncreated(self) -> int:
        """Pods asked for that do not exist yet."""
        return max(0, self.missing - len(self.starting_seconds))


@dataclass(frozen=True)
class Memory:
    """Since when something has held without a break."""

    out_since: float | None = None
    in_since: float | None = None
    stale_since: float | None = None
    uncreated_since: float | None = None


@dataclass(frozen=True)
class Decision:
    """`replicas` is what should run; equal to the present count unless the action says otherwise."""

    action: Action
    replicas: int
    reason: Reason
    message: str


@dataclass(frozen=True)
class Wish:
    """What a rule asks for, before windows and bounds. `replicas` equal to the present count is a hold."""

    replicas: int
    reason: Reason
    message: str
