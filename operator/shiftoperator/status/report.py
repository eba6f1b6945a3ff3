"""The status object: built whole, compared, and only what differs is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.snapshot import Failure, Object, Pod, RuntimeState, Snapshot
from shiftoperator.spec import Policy
from shiftoperator.status.conditions import FALSE, TRUE, Outcome, conditions

MAX_PODS = 16
MAX_DECISIONS = 10


@dataclass(frozen=True)
class Transition:
    """A condition that changed in a way a person wants to hear of."""

    type: str
    status: str
    reason: str
    message: str

    @property
    def bad(self) -> bool:
        alarming = (contract.CONDITION_READY, contract.CONDITION_AVAILABLE, contract.CONDITION_SHIFT_VERIFIED)
        return self.type in alarming and self.status == FALSE


def build(snapshot: Snapshot, outcome: Outcome, decisions: list[Object], now: str) -> Object:
    """Everything but the policy and its generation, which are stored before they are pushed."""
    pods = sorted(snapshot.live_pods, key=lambda pod: pod.name)
    ready = len(snapshot.ready_pods)
    status: Object = {
        "observedGeneration": snapshot.generation,
        "replicas": len(pods),
        "readyReplicas": ready,
        "readyOfDesired": f"{ready}/{outcome.desired_replicas}",
        "selector": names.selector_text(snapshot.key.name),
        "templateHash": outcome.template_hash,
        "gear": _gear_text(snapshot.states[pod.uid] for pod in pods if pod.uid in snapshot.states),
        "conditions": conditions(snapshot, outcome, now),
        "pods": [_pod(pod, snapshot.states.get(pod.uid)) for pod in pods[:MAX_PODS]],
        "decisions": decisions[:MAX_DECISIONS],
    }
    failure = _latest_failure(pods)
    if failure is not None:
        status["lastFailure"] = _failure(failure)
    return status


def patch(before: Object, after: Object) -> Object:
    """The parts of `after` that `before` lacks or has otherwise; empty when nothing is to be written."""
    return {name: value for name, value in after.items() if before.get(name) != value}


def raised_generation(status: Object, policy: Policy, generation: int, now: str) -> Object:
    """What to store before a new policy is pushed: until pods report it, PolicyInSync must not look back."""
    changed: Object = {"policyGeneration": generation, "policy": {"thresholdTokens": None, **policy.as_status()}}
    before: list[Object] = status.get("conditions", [])
    message = f"generation {generation} ({policy.mode}) is being pushed"
    if any(c["type"] == contract.CONDITION_POLICY_IN_SYNC and c["status"] == TRUE for c in before):
        pushed = {"status": FALSE, "reason": "Applying", "message": message, "lastTransitionTime": now}
        changed["conditions"] = [
            {**c, **pushed} if c["type"] == contract.CONDITION_POLICY_IN_SYNC else c for c in before
        ]
    return changed


def transitions(before: Object, after: Object) -> tuple[Transition, ...]:
    """Conditions with another status, or still False for another reason. First sights of Unknown are no news."""
    old = {condition["type"]: condition for condition in before.get("conditions", ())}
    changed = []
    for new in after.get("conditions", ()):
        known = old.get(new["type"])
        if known is None and new["status"] != TRUE:
            continue
        same = known is not None and known["status"] == new["status"]
        if same and (new["status"] != FALSE or known["reason"] == new["reason"] or _talkative(new)):  # type: ignore[index]
            continue
        changed.append(Transition(new["type"], new["status"], new["reason"], new["message"]))
    return tuple(changed)


def _talkative(condition: Object) -> bool:
    """Its reasons follow the load, and decisions to scale have Events of their own."""
    return bool(condition["type"] == contract.CONDITION_SCALING_ACTIVE)


def _pod(pod: Pod, state: RuntimeState | None) -> Object:
    summary: Object = {"name": pod.name, "ready": pod.ready}
    if state is None:
        return summary
    summary["gears"] = gear_shares([state])
    summary["policyGeneration"] = state.generation_applied
    if state.threshold_tokens:
        summary["thresholdTokens"] = state.threshold_tokens
    if state.threshold_source:
        summary["thresholdSource"] = state.threshold_source
    if state.crossover_tokens:
        summary["crossoverTokens"] = state.crossover_tokens
    if state.crossover_reason:
        summary["crossoverReason"] = state.crossover_reason
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


def _latest_failure(pods: list[Pod]) -> Failure | None:
    failures = [pod.failure for pod in pods if pod.failure is not None]
    return max(failures, key=lambda failure: failure.time, default=None)


def _failure(failure: Failure) -> Object:
    summary: Object = {
        "pod": failure.pod,
        "reason": failure.reason,
        "exitCode": failure.exit_code,
        "message": failure.message,
    }
    return {**summary, "time": failure.time} if failure.time else summary
