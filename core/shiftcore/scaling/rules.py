"""The rules, in the order in which they are asked; the first that has something to say decides.

A rule of scale-out answers with the number of pods that should *serve*; what was ordered before is credited later.
"""

from __future__ import annotations

from collections.abc import Callable

from shiftcore.scaling.demand import demand, percent, pods_needed, throughput_share, utilisation
from shiftcore.scaling.model import Limits, Observation, PodLoad, Reason, Wish
from shiftcore.scaling.survivors import survivors

Rule = Callable[[Limits, Observation], Wish | None]


# --- bounds ---


def below_minimum(limits: Limits, seen: Observation) -> Wish | None:
    if seen.replicas >= limits.minimum:
        return None
    message = f"{seen.replicas} replicas are below the minimum of {limits.minimum}"
    return Wish(limits.minimum, Reason.BELOW_MINIMUM, message)


def above_maximum(limits: Limits, seen: Observation) -> Wish | None:
    if seen.replicas <= limits.maximum:
        return None
    message = f"{seen.replicas} replicas are above the maximum of {limits.maximum}"
    return Wish(limits.ceiling, Reason.ABOVE_MAXIMUM, message)


def over_budget(limits: Limits, seen: Observation) -> Wish | None:
    if seen.replicas <= limits.budget:
        return None
    held = seen.replicas * limits.gpus_per_pod
    message = f"{seen.replicas} replicas hold {held} GPUs, the budget is {limits.max_gpus}"
    return Wish(limits.ceiling, Reason.GPU_BUDGET, message)


# --- out: past the gate, because shifting cannot cure these; the worst pod of each ---


def queue_too_old(limits: Limits, seen: Observation) -> Wish | None:
    pod = max(seen.pods, key=lambda pod: pod.oldest_wait_seconds)
    if not pod.waiting_requests or pod.oldest_wait_seconds <= limits.wait_seconds:
        return None
    message = f"a request waits longer than the TTFT target of {limits.wait_seconds:g} s on pod {pod.name}"
    return _one_more(limits, seen, Reason.QUEUE_TOO_OLD, message)


def slots_full(limits: Limits, seen: Observation) -> Wish | None:
    full = [p for p in seen.pods if p.waiting_requests and 0 < p.max_running_requests <= p.running_requests]
    if not full:
        return None
    message = f"pod {full[0].name} runs its maximum of {full[0].max_running_requests} requests and more wait"
    return _one_more(limits, seen, Reason.SLOTS_FULL, message)


def kv_pressure(limits: Limits, seen: Observation) -> Wish | None:
    # What an idle pod still reports as used belongs to no request: it is free as soon as one comes.
    pod = max(seen.pods, key=lambda pod: 0.0 if pod.idle else pod.kv_used_fraction)
    if pod.idle or pod.kv_used_fraction < limits.kv_pressure:
        return None
    message = f"the KV cache of pod {pod.name} is {percent(pod.kv_used_fraction)} full"
    return _one_more(limits, seen, Reason.KV_PRESSURE, message)


def output_too_slow(limits: Limits, seen: Observation) -> Wish | None:
    # Percentiles look back a minute: without a running request they tell of the past.
    pod = max(seen.pods, key=lambda pod: pod.tpot_seconds if pod.running_requests else 0.0)
    if not limits.tpot_seconds or not pod.running_requests or pod.tpot_seconds <= limits.tpot_seconds:
        return None
    message = f"pod {pod.name} exceeds the TPOT target of {limits.tpot_seconds * 1000:.0f} ms"
    return _one_more(limits, seen, Reason.OUTPUT_TOO_SLOW, message)


def _one_more(limits: Limits, seen: Observation, reason: Reason, message: str) -> Wish:
    """What is missing beside tokens per second is not known in pods: one, or as many as the demand asks for."""
    return Wish(max(len(seen.pods) + 1, pods_needed(limits, seen.pods)), reason, message)


# --- out: through the gate ---


def high_utilisation(limits: Limits, seen: Observation) -> Wish | None:
    load = utilisation(limits, seen.pods)
    if load is None or load < limits.high_utilisation or not _shifted(limits, seen.pods):
        return None
    pods = len(seen.pods)
    message = f"demand is {percent(load)} of the throughput capacity (pods: {pods}, already in that gear)"
    return Wish(max(pods + 1, pods_needed(limits, seen.pods)), Reason.HIGH_UTILISATION, message)


def _shifted(limits: Limits, pods: tuple[PodLoad, ...]) -> bool:
    return not limits.may_shift or throughput_share(pods) >= limits.shifted_share


# --- in ---


def idle(limits: Limits, seen: Observation) -> Wish | None:
    if seen.replicas <= limits.minimum or not all(pod.idle for pod in seen.pods) or demand(limits, seen.pods) > 0:
        return None
    return Wish(seen.replicas - 1, Reason.IDLE, f"no request runs or waits (pods: {seen.replicas})")


def low_utilisation(limits: Limits, seen: Observation) -> Wish | None:
    """In only if the survivors, in the throughput gear, have room and meet the targets."""
    # A pod that is not ready is the first to be taken away: those that serve stay as they are.
    stay = min(seen.replicas - 1, len(seen.pods))
    if seen.replicas <= limits.minimum or stay < 1 or any(pod.waiting_requests for pod in seen.pods):
        return None
    after = survivors(limits, seen.pods, stay)
    if after is None or after.utilisation > limits.low_utilisation or after.fill > limits.low_utilisation:
        return None
    slow = _over_target(limits, after.tpot_seconds, after.ttft_seconds)
    if slow is not None:
        message = f"with one pod less {slow} (pods: {stay})"
        return Wish(seen.replicas, Reason.SURVIVORS_TOO_SLOW, message)
    message = (
        f"with one pod less the throughput gear would run at {percent(after.utilisation)} of its capacity "
        f"and meet the targets (pods: {stay})"
    )
    return Wish(seen.replicas - 1, Reason.LOW_UTILISATION, message)


def _over_target(limits: Limits, tpot_seconds: float, ttft_seconds: float) -> str | None:
    for name, value, target in (
        ("TPOT", tpot_seconds, limits.tpot_seconds),
        ("TTFT", ttft_seconds, limits.ttft_seconds),
    ):
        if target and value > limits.slo_margin * target:
            return (
                f"{name} would exceed {percent(limits.slo_margin)} of its target of {target * 1000:.0f} ms "
                "in the throughput gear"
            )
    return None


# --- nothing to do ---


def pods_starting(limits: Limits, seen: Observation) -> Wish | None:
    if not seen.missing:
        return None
    message = f"{seen.ready} of {seen.replicas} pods are ready; waiting for the others"
    return Wish(seen.replicas, Reason.PODS_STARTING, message)


def shift_first(limits: Limits, seen: Observation) -> Wish | None:
    load = utilisation(limits, seen.pods)
    if load is None or load < limits.high_utilisation:
        return None
    message = f"demand is {percent(load)} of the throughput capacity; the pods shift to that gear first"
    return Wish(seen.replicas, Reason.SHIFT_FIRST, message)


def steady(limits: Limits, seen: Observation) -> Wish:
    load = utilisation(limits, seen.pods)
    if load is None:
        message = f"the throughput capacity is not measured (pods: {seen.replicas})"
    else:
        message = f"demand is {percent(load)} of the throughput capacity (pods: {seen.replicas})"
    return Wish(seen.replicas, Reason.STEADY, message)


BOUNDS: tuple[Rule, ...] = (below_minimum, above_maximum, over_budget)
OUT: tuple[Rule, ...] = (queue_too_old, slots_full, kv_pressure, output_too_slow, high_utilisation)
IN: tuple[Rule, ...] = (idle, low_utilisation)
REST: tuple[Rule, ...] = (pods_starting, shift_first, steady)


def first(rules: tuple[Rule, ...], limits: Limits, seen: Observation) -> Wish | None:
    return next((wish for rule in rules if (wish := rule(limits, seen)) is not None), None)
