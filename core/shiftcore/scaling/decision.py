"""The order of the rules, and what holds a wish back: its window, ordered capacity, bounds, a rollout.

The only smoothing is the window: a reason must hold without a break for so long before it counts. An average beside it
would delay the same signal twice, and of a window a person can be told what is waited for. (The pods' rates are counts
over ten seconds: that is their measurement.)
"""

from __future__ import annotations

from dataclasses import replace

from shiftcore.scaling import rules
from shiftcore.scaling.model import Action, Decision, Limits, Memory, MetricsLoss, Observation, Reason, Wish


def decide(limits: Limits, seen: Observation, now: float, memory: Memory) -> tuple[Decision, Memory]:
    """The same arguments give the same answer. `now` and all times are of one clock, in seconds."""
    waiting = Memory(uncreated_since=_since(memory.uncreated_since, now, bool(seen.uncreated)))
    bound = rules.first(rules.BOUNDS, limits, seen)
    if bound is not None:
        return _into_bounds(limits, seen, bound), waiting
    # Of no ready pod nothing can be known, and an open question must not count towards a window.
    if seen.missing and seen.ready == 0:
        return _hold(seen, rules.pods_starting(limits, seen)), waiting
    fresh = sum(now - pod.measured_at <= limits.stale_seconds for pod in seen.pods)
    if fresh < seen.ready or not seen.pods:
        return _blind(limits, seen, fresh, now, replace(waiting, stale_since=memory.stale_since))
    out = rules.first(rules.OUT, limits, seen)
    if out is not None:
        return _out(limits, seen, out, now, replace(waiting, out_since=memory.out_since))
    into = rules.first(rules.IN, limits, seen)
    if into is not None and into.replicas < seen.replicas:
        return _in(limits, seen, into, now, replace(waiting, in_since=memory.in_since))
    # A pod that never starts must not hold the size for ever: only now is it waited for.
    return _hold(seen, rules.pods_starting(limits, seen) or into or rules.first(rules.REST, limits, seen)), waiting


def decide_while_leaving(limits: Limits, seen: Observation, now: float, memory: Memory) -> tuple[Decision, Memory]:
    """As ``decide``, of the pods that stay while others are emptied: ScaleOut means that these shall not leave.

    It is said at every look for as long as the reason holds: a pod that drains is replaced only when it is empty, which
    may be much later than the first time."""
    decision, after = decide(limits, seen, now, memory)
    return decision, memory if decision.action is Action.OUT else after


def credited(limits: Limits, seen: Observation, now: float, memory: Memory) -> int:
    """Pods that were ordered and are expected: those that exceeded their start time are not counted on."""
    coming = sum(seconds <= limits.pod_start_seconds for seconds in seen.starting_seconds)
    since = memory.uncreated_since
    if since is not None and now - since <= limits.pod_start_seconds:
        coming += seen.uncreated
    return min(coming, seen.missing)


def _into_bounds(limits: Limits, seen: Observation, wish: Wish) -> Decision:
    top = _ceiling(limits, seen)
    if wish.replicas < seen.replicas:
        return _change(seen, wish)
    if top <= seen.replicas:
        return _hold(seen, _bounded(limits, top, wish))
    return _change(seen, replace(wish, replicas=min(wish.replicas, top)))


def _blind(limits: Limits, seen: Observation, fresh: int, now: float, memory: Memory) -> tuple[Decision, Memory]:
    since = _since(memory.stale_since, now, True)
    message = f"only {fresh} of {seen.ready} ready pods reported their load in the last {limits.stale_seconds:.0f} s"
    memory = replace(memory, stale_since=since)
    top = _ceiling(limits, seen)
    if limits.on_metrics_loss is not MetricsLoss.SCALE_TO_MAX or top <= seen.replicas:
        return _hold(seen, Wish(seen.replicas, Reason.METRICS_STALE, message)), memory
    if since is None or now - since < limits.out_seconds:
        message += f"; scales to the maximum when this holds for {limits.out_seconds:g} s"
        return _hold(seen, Wish(seen.replicas, Reason.METRICS_STALE, message)), memory
    return _change(seen, Wish(top, Reason.METRICS_LOST, message)), replace(memory, stale_since=None)


def _out(limits: Limits, seen: Observation, wish: Wish, now: float, memory: Memory) -> tuple[Decision, Memory]:
    coming = credited(limits, seen, now, memory)
    if wish.replicas <= seen.ready + coming:
        message = f"{wish.message}; ordered pods are on their way (pods: {seen.ready} ready of {seen.replicas})"
        # What those that serve show says nothing about the size asked for: the window begins when the others serve.
        return _hold(seen, replace(wish, reason=Reason.CAPACITY_COMING, message=message)), replace(
            memory, out_since=None
        )
    # Pods that did not come keep their places: others are ordered beside them.
    target = wish.replicas + seen.missing - coming
    top = _ceiling(limits, seen)
    if top <= seen.replicas:
        return _hold(seen, _bounded(limits, top, wish)), memory
    since = _since(memory.out_since, now, True)
    if since is None or now - since < limits.out_seconds:
        message = f"{wish.message}; scales out when this holds for {limits.out_seconds:g} s"
        return _hold(seen, replace(wish, message=message)), replace(memory, out_since=since)
    return _change(seen, replace(wish, replicas=min(target, top))), replace(memory, out_since=None)


def _in(limits: Limits, seen: Observation, wish: Wish, now: float, memory: Memory) -> tuple[Decision, Memory]:
    if seen.rolling:
        return _change(seen, wish), replace(memory, in_since=None)
    since = _since(memory.in_since, now, True)
    if since is None or now - since < limits.in_seconds:
        message = f"{wish.message}; scales in when this holds for {limits.in_seconds:g} s"
        return _hold(seen, replace(wish, message=message)), replace(memory, in_since=since)
    return _change(seen, wish), replace(memory, in_since=None)


def _ceiling(limits: Limits, seen: Observation) -> int:
    """Pods that leave hold their GPUs until they are gone."""
    leaving = seen.stopping if limits.max_gpus is not None else 0
    return min(limits.maximum, max(0, limits.room - leaving))


def _bounded(limits: Limits, top: int, wish: Wish) -> Wish:
    if top < limits.maximum:
        room = f"{top} pods of {limits.new_pod_gpus}"
        message = f"{wish.message}; the budget of {limits.max_gpus} GPUs leaves room for {room}"
        return replace(wish, reason=Reason.GPU_BUDGET, message=message)
    message = f"{wish.message}; the maximum of {limits.maximum} pods is reached"
    return replace(wish, reason=Reason.AT_MAXIMUM, message=message)


def _change(seen: Observation, wish: Wish) -> Decision:
    if wish.replicas > seen.replicas:
        return Decision(Action.OUT, wish.replicas, wish.reason, wish.message)
    if seen.rolling:
        # The rollout takes pods away itself; which one leaves could not be chosen.
        message = f"{wish.message}; scales in when the rollout is over"
        return Decision(Action.HOLD, seen.replicas, Reason.ROLLOUT_IN_PROGRESS, message)
    return Decision(Action.IN, wish.replicas, wish.reason, wish.message)


def _hold(seen: Observation, wish: Wish | None) -> Decision:
    assert wish is not None, "a rule of rest answers always"
    return Decision(Action.HOLD, seen.replicas, wish.reason, wish.message)


def _since(before: float | None, now: float, holds: bool) -> float | None:
    if not holds:
        return None
    return now if before is None else before
