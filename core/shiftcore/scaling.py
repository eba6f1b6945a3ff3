"""How many pods: shift before scale.

A pod that is slow in its tp gear may still have room in its throughput gear, and shifting is free while a new pod costs
GPUs and a long start. So capacity here is always that of the throughput gear, and a high utilisation adds a pod only
once the pods run that gear. Signs that shifting cannot help (a long queue, a full KV cache, no free slot, slow output)
go past this gate: a step that only decodes may rightly never leave the tp gear.

Pure: the clock and what is remembered between two decisions are handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum


class Mode(StrEnum):
    DISABLED = "Disabled"
    RECOMMEND = "Recommend"
    APPLY = "Apply"


class Action(StrEnum):
    OUT = "ScaleOut"
    IN = "ScaleIn"
    HOLD = "Hold"


@dataclass(frozen=True)
class Limits:
    """What the user asks for, and the margins of the rules."""

    minimum: int = 1
    maximum: int = 1
    out_seconds: float = 30.0
    in_seconds: float = 300.0
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
    stale_seconds: float = 15.0
    # A queue is to be worked off within this where the user set no TTFT target.
    default_ttft_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"minimum {self.minimum} must lie in 0..maximum {self.maximum}")
        if self.low_utilisation >= self.high_utilisation:
            raise ValueError(
                f"low_utilisation {self.low_utilisation} must be below high_utilisation {self.high_utilisation}"
            )

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
    tpot_p95_seconds: float = 0.0
    # Tokens per second in the throughput gear; 0 when it was not measured.
    capacity_tokens_per_second: float = 0.0
    # Share of recently computed tokens in the throughput gear; 1 when the pod has a single gear.
    throughput_share: float = 1.0

    def demand_tokens_per_second(self, wait_seconds: float) -> float:
        """What arrives and what is made, and the queue if it is to be worked off in time."""
        return self.prompt_tokens_per_second + self.output_tokens_per_second + self.waiting_tokens / wait_seconds

    @property
    def idle(self) -> bool:
        return self.running_requests == 0 and self.waiting_requests == 0


@dataclass(frozen=True)
class Memory:
    """Since when a reason to scale has held without a break."""

    out_since: float | None = None
    in_since: float | None = None


@dataclass(frozen=True)
class Decision:
    """`replicas` is what should run; equal to the present count unless the action says otherwise."""

    action: Action
    replicas: int
    reason: str
    message: str


@dataclass(frozen=True)
class _Wish:
    replicas: int
    reason: str
    message: str


def decide(
    limits: Limits, replicas: int, ready: int, pods: tuple[PodLoad, ...], now: float, memory: Memory
) -> tuple[Decision, Memory]:
    """`replicas` is asked for and `ready` serve; `pods` are the ready ones whose load is known."""
    if not limits.minimum <= replicas <= limits.maximum:
        return _into_bounds(limits, replicas), Memory()
    fresh = sum(now - pod.measured_at <= limits.stale_seconds for pod in pods)
    missing = ready < replicas
    # Of no ready pod nothing can be known, and an open question must not count towards a window.
    if missing and (ready == 0 or fresh < ready):
        return _starting(replicas, ready), Memory()
    if fresh < ready:
        message = f"only {fresh} of {ready} ready pods reported their load in the last {limits.stale_seconds:.0f} s"
        return _hold(replicas, "MetricsStale", message), Memory()
    out = _out_wish(limits, replicas, pods)
    if out is not None and missing:
        # A pod that loads takes no traffic yet: what the others show says nothing about the size asked for.
        return _starting(replicas, ready), Memory()
    if out is not None:
        return _scale_out(limits, replicas, out, now, replace(memory, in_since=None))
    # A pod that never starts must not hold the size for ever: those that are ready may show that they are enough.
    into = _in_wish(limits, replicas, pods)
    if into is not None:
        return _scale_in(limits, replicas, into, now, replace(memory, out_since=None))
    if missing:
        return _starting(replicas, ready), Memory()
    return _hold(replicas, *_steady(limits, replicas, pods)), Memory()


def _into_bounds(limits: Limits, replicas: int) -> Decision:
    if replicas < limits.minimum:
        message = f"{replicas} replicas are below the minimum of {limits.minimum}"
        return Decision(Action.OUT, limits.minimum, "BelowMinimum", message)
    message = f"{replicas} replicas are above the maximum of {limits.maximum}"
    return Decision(Action.IN, limits.maximum, "AboveMaximum", message)


def _starting(replicas: int, ready: int) -> Decision:
    return _hold(replicas, "PodsStarting", f"{ready} of {replicas} pods are ready; waiting for the others")


def _out_wish(limits: Limits, replicas: int, pods: tuple[PodLoad, ...]) -> _Wish | None:
    bypass = _bypass(limits, pods)
    if bypass is not None:
        return _Wish(replicas + 1, *bypass)
    load = utilisation(limits, pods)
    if load is None or load < limits.high_utilisation:
        return None
    if limits.may_shift and throughput_share(pods) < limits.shifted_share:
        return None
    needed = math.ceil(load * len(pods) / limits.high_utilisation)
    message = f"demand is {_percent(load)} of the throughput capacity (pods: {len(pods)}, already in that gear)"
    return _Wish(max(replicas + 1, needed), "HighUtilisation", message)


def _bypass(limits: Limits, pods: tuple[PodLoad, ...]) -> tuple[str, str] | None:
    """Reasons that shifting cannot cure, the worst pod of each."""
    if not pods:
        return None
    waiting = max(pods, key=lambda pod: pod.oldest_wait_seconds)
    if waiting.waiting_requests and waiting.oldest_wait_seconds > limits.wait_seconds:
        return "QueueTooOld", (
            f"a request waits longer than the TTFT target of {limits.wait_seconds:g} s on pod {waiting.name}"
        )
    full = next((p for p in pods if p.waiting_requests and 0 < p.max_running_requests <= p.running_requests), None)
    if full is not None:
        return "SlotsFull", f"pod {full.name} runs its maximum of {full.max_running_requests} requests and more wait"
    # What an idle pod still reports as used belongs to no request: it is free as soon as one comes.
    crowded = max(pods, key=lambda pod: 0.0 if pod.idle else pod.kv_used_fraction)
    if not crowded.idle and crowded.kv_used_fraction >= limits.kv_pressure:
        return "KvPressure", f"the KV cache of pod {crowded.name} is {_percent(crowded.kv_used_fraction)} full"
    # Percentiles look back a minute: without a running request they tell of the past.
    slow = max(pods, key=lambda pod: pod.tpot_p95_seconds if pod.running_requests else 0.0)
    if limits.tpot_seconds and slow.running_requests and slow.tpot_p95_seconds > limits.tpot_seconds:
        return "OutputTooSlow", (
            f"pod {slow.name} exceeds the TPOT target of {limits.tpot_seconds * 1000:.0f} ms at the 95th percentile"
        )
    return None


def _in_wish(limits: Limits, replicas: int, pods: tuple[PodLoad, ...]) -> _Wish | None:
    if replicas <= limits.minimum:
        return None
    # A pod that is not ready is the first to be taken away: those that serve stay as they are.
    survivors = min(replicas - 1, len(pods))
    if all(pod.idle for pod in pods) and _demand(limits, pods) == 0:
        return _Wish(replicas - 1, "Idle", f"no request runs or waits (pods: {replicas})")
    load = utilisation(limits, pods)
    if load is None or survivors == 0:
        return None
    after = load * len(pods) / survivors
    slots = _slots_after(pods, survivors)
    if after > limits.low_utilisation or slots > limits.low_utilisation:
        return None
    if any(pod.waiting_requests for pod in pods):
        return None
    message = (
        f"with one pod less the throughput gear would run at {_percent(after)} of its capacity (pods: {survivors})"
    )
    return _Wish(replicas - 1, "LowUtilisation", message)


def _slots_after(pods: tuple[PodLoad, ...], survivors: int) -> float:
    """How full the running slots and the KV cache of the survivors would be, the worse of both."""
    slots = sum(pod.max_running_requests for pod in pods) * survivors / len(pods)
    running = sum(pod.running_requests for pod in pods)
    kv = sum(pod.kv_used_fraction for pod in pods) / survivors
    return max(running / slots if slots else 0.0, kv)


def _scale_out(limits: Limits, replicas: int, wish: _Wish, now: float, memory: Memory) -> tuple[Decision, Memory]:
    if replicas >= limits.maximum:
        return _hold(replicas, "AtMaximum", f"{wish.message}; the maximum of {limits.maximum} pods is reached"), memory
    since = memory.out_since if memory.out_since is not None else now
    if now - since < limits.out_seconds:
        message = f"{wish.message}; scales out when this holds for {limits.out_seconds:g} s"
        return _hold(replicas, wish.reason, message), replace(memory, out_since=since)
    return Decision(Action.OUT, min(wish.replicas, limits.maximum), wish.reason, wish.message), Memory()


def _scale_in(limits: Limits, replicas: int, wish: _Wish, now: float, memory: Memory) -> tuple[Decision, Memory]:
    since = memory.in_since if memory.in_since is not None else now
    if now - since < limits.in_seconds:
        message = f"{wish.message}; scales in when this holds for {limits.in_seconds:g} s"
        return _hold(replicas, wish.reason, message), replace(memory, in_since=since)
    return Decision(Action.IN, max(wish.replicas, limits.minimum), wish.reason, wish.message), Memory()


def _steady(limits: Limits, replicas: int, pods: tuple[PodLoad, ...]) -> tuple[str, str]:
    load = utilisation(limits, pods)
    if load is None:
        return "Steady", f"the throughput capacity is not measured (pods: {replicas})"
    if load >= limits.high_utilisation:
        message = f"demand is {_percent(load)} of the throughput capacity; the pods shift to that gear first"
        return "ShiftFirst", message
    return "Steady", f"demand is {_percent(load)} of the throughput capacity (pods: {replicas})"


def utilisation(limits: Limits, pods: tuple[PodLoad, ...]) -> float | None:
    """Demand over throughput capacity of all pods; None when a capacity is not known."""
    capacity = sum(pod.capacity_tokens_per_second for pod in pods)
    if not pods or any(pod.capacity_tokens_per_second <= 0 for pod in pods):
        return None
    return _demand(limits, pods) / capacity


def throughput_share(pods: tuple[PodLoad, ...]) -> float:
    """Share of recent tokens in the throughput gear, weighted by what each pod makes."""
    weights = [pod.prompt_tokens_per_second + pod.output_tokens_per_second for pod in pods]
    total = sum(weights)
    if total <= 0:
        return sum(pod.throughput_share for pod in pods) / len(pods) if pods else 1.0
    return sum(pod.throughput_share * weight for pod, weight in zip(pods, weights, strict=True)) / total


def _demand(limits: Limits, pods: tuple[PodLoad, ...]) -> float:
    return sum(pod.demand_tokens_per_second(limits.wait_seconds) for pod in pods)


def _hold(replicas: int, reason: str, message: str) -> Decision:
    return Decision(Action.HOLD, replicas, reason, message)


def _percent(fraction: float) -> str:
    """In steps of 5 %: a sentence that changes with every reading would be written to the API every time."""
    return f"{round(fraction * 20) * 5} %"
