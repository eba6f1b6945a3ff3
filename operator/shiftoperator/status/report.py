"""The status object, built whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.snapshot import Failure, Object, Pod, RuntimeState, Snapshot
from shiftoperator.status import bands, measured
from shiftoperator.status.conditions import conditions
from shiftoperator.status.fit import int32, int64, text
from shiftoperator.status.pods import current_phase
from shiftoperator.status.reasons import ALL_PODS_READY
from shiftoperator.status.view import Outcome

MAX_PODS = 16
MAX_DECISIONS = 10
_DECISION_MESSAGE = 1024


def build(snapshot: Snapshot, outcome: Outcome, decisions: list[Object], now: str) -> Object:
    """Everything but the policy and its generation, which are stored before they are pushed."""
    pods = sorted(snapshot.live_pods, key=lambda pod: pod.name)
    ready = len(snapshot.ready_pods)
    known = {pod["name"]: pod for pod in snapshot.status.get("pods", ())}
    status: Object = {
        "observedGeneration": snapshot.generation,
        "replicas": len(pods),
        "readyReplicas": ready,
        "readyOfDesired": f"{ready}/{outcome.desired_replicas}",
        "selector": names.selector_text(snapshot.key.name),
        "templateHash": outcome.template_hash,
        "gear": text(_gear_text(snapshot.states[pod.uid] for pod in pods if pod.uid in snapshot.states), 256),
        "conditions": conditions(snapshot, outcome, now),
        "pods": [_pod(pod, snapshot.states.get(pod.uid), known.get(pod.name, {}), now) for pod in pods[:MAX_PODS]],
        "capacity": measured.capacity(snapshot),
        "decisions": [_decision(decision) for decision in decisions[:MAX_DECISIONS]],
    }
    status["settledReplicas"] = _settled(snapshot, status["conditions"], outcome)
    found = {
        "adaptive": outcome.adaptive,
        "schedule": outcome.schedule,
        "crossover": measured.crossover(snapshot),
        "slowestStart": measured.slowest_start(snapshot),
        "lastFailure": _last_failure(pods, snapshot.status.get("lastFailure")),
    }
    if outcome.rollout:
        status["rollout"] = outcome.rollout
    return status | {name: value for name, value in found.items() if value is not None}


def _settled(snapshot: Snapshot, now_said: list[Object], outcome: Outcome) -> int:
    """Pods asked for when all of them last served; what is less by now counts as less."""
    ready = next(c for c in now_said if c["type"] == contract.CONDITION_READY)
    if ready["reason"] == ALL_PODS_READY:
        return outcome.desired_replicas
    return min(int(snapshot.status.get("settledReplicas", 0)), outcome.desired_replicas)


def _decision(decision: Object) -> Object:
    """One that an earlier version wrote may be longer than the schema is by now."""
    message = decision.get("message")
    return {**decision, "message": text(message, _DECISION_MESSAGE)} if message else decision


def _pod(pod: Pod, state: RuntimeState | None, before: Object, now: str) -> Object:
    summary: Object = {"name": pod.name, "ready": pod.ready}
    if state is None:
        return summary
    summary["gears"] = {text(name, 64): share for name, share in list(gear_shares([state]).items())[:64]}
    summary["policyGeneration"] = int64(state.generation_applied)
    if pod.ready:
        summary |= bands.load(state, before, now)
    elif current_phase(state) and not pod.retiring:
        summary["phase"] = current_phase(state)
    if state.threshold_tokens:
        summary["thresholdTokens"] = int32(state.threshold_tokens)
    if state.threshold_source:
        summary["thresholdSource"] = text(state.threshold_source, 64)
    if state.crossover_tokens:
        summary["crossoverTokens"] = int32(state.crossover_tokens)
    if state.crossover_reason:
        summary["crossoverReason"] = text(state.crossover_reason, 256)
    return summary


def gear_shares(states: Iterable[RuntimeState]) -> dict[str, int]:
    """Percent of steps per gear, in steps of 5 so that a pod at work does not rewrite the status all the time."""
    steps: Counter[str] = Counter()
    for state in states:
        for gear in state.gears:
            steps[gear.name] += gear.steps
    total = steps.total()
    return {name: round(count * 20 / total) * 5 if total else 0 for name, count in steps.items()}


def _gear_text(states: Iterable[RuntimeState]) -> str:
    shares = gear_shares(states)
    used = [f"{name} {share}%" for name, share in shares.items() if share]
    return ", ".join(used) or "/".join(shares)


def _last_failure(pods: list[Pod], before: Object | None) -> Object | None:
    """The newest, whether its pod has come back since or is gone."""
    failures = [pod.ended for pod in pods if pod.ended is not None]
    newest = max(failures, key=lambda failure: failure.time, default=None)
    if newest is None or (before is not None and newest.time < before.get("time", "")):
        return before
    return _failure(newest)


def _failure(failure: Failure) -> Object:
    summary: Object = {
        "pod": failure.pod,
        "reason": failure.reason,
        "exitCode": failure.exit_code,
        "message": failure.message,
    }
    return {**summary, "time": failure.time} if failure.time else summary
