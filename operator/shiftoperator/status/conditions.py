"""The conditions, each a chain of small checks: the first that has something to say decides."""

from __future__ import annotations

from dataclasses import dataclass

from shiftprotos import contract

from shiftoperator.errors import UserError
from shiftoperator.snapshot import MESSAGE_LIMIT, Object, Pod, Snapshot

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"


@dataclass(frozen=True)
class Scaling:
    """What the autoscaler says at the moment; `active` when it can decide."""

    active: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """What one reconcile came to, beside what it saw."""

    desired_replicas: int
    template_hash: str
    policy_generation: int
    scaling: Scaling
    error: UserError | None = None


@dataclass(frozen=True)
class _Verdict:
    status: str
    reason: str
    message: str


def conditions(snapshot: Snapshot, outcome: Outcome, now: str) -> list[Object]:
    verdicts = {
        contract.CONDITION_READY: _ready(snapshot, outcome),
        contract.CONDITION_AVAILABLE: _available(snapshot, outcome),
        contract.CONDITION_PROGRESSING: _progressing(snapshot, outcome),
        contract.CONDITION_SHIFT_VERIFIED: _shift_verified(snapshot),
        contract.CONDITION_POLICY_IN_SYNC: _policy_in_sync(snapshot, outcome),
        contract.CONDITION_SCALING_ACTIVE: _Verdict(
            TRUE if outcome.scaling.active else FALSE, outcome.scaling.reason, outcome.scaling.message
        ),
    }
    before = {condition["type"]: condition for condition in snapshot.status.get("conditions", ())}
    return [_condition(type_, v, before.get(type_), snapshot.generation, now) for type_, v in verdicts.items()]


def _condition(type_: str, verdict: _Verdict, before: Object | None, generation: int, now: str) -> Object:
    same = before is not None and before["status"] == verdict.status
    return {
        "type": type_,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": verdict.message[:MESSAGE_LIMIT],
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else now,
        "observedGeneration": generation,
    }


def _ready(snapshot: Snapshot, outcome: Outcome) -> _Verdict:
    if outcome.error is not None:
        return _Verdict(FALSE, outcome.error.reason, outcome.error.message)
    wanted, ready = outcome.desired_replicas, _current(snapshot.ready_pods, outcome)
    if wanted == 0:
        return _Verdict(TRUE, "ScaledToZero", "0 replicas are asked for and none runs")
    if len(ready) >= wanted:
        return _Verdict(TRUE, "AllPodsReady", f"{len(ready)} of {wanted} pods serve")
    trouble = _trouble(snapshot, outcome)
    if trouble is not None:
        return trouble
    return _Verdict(FALSE, *_underway(snapshot, outcome))


def _trouble(snapshot: Snapshot, outcome: Outcome) -> _Verdict | None:
    """Why pods will not become ready by waiting; the pods of the present template first."""
    pods = sorted(snapshot.live_pods, key=lambda pod: pod.template_hash != outcome.template_hash)
    for pod in pods:
        if pod.failure is not None:
            return _Verdict(FALSE, pod.failure.reason, f"pod {pod.name}: {pod.failure.message}")
    for pod in pods:
        if pod.obstacle is not None:
            return _Verdict(FALSE, pod.obstacle.reason, f"pod {pod.name}: {pod.obstacle.message}")
    refusal = _deployment_condition(snapshot, "ReplicaFailure")
    if refusal.get("status") == TRUE:
        return _Verdict(FALSE, refusal.get("reason", "FailedCreate"), refusal.get("message", "pods cannot be created"))
    return None


def _underway(snapshot: Snapshot, outcome: Outcome) -> tuple[str, str]:
    wanted = outcome.desired_replicas
    old = [pod for pod in snapshot.live_pods if pod.template_hash != outcome.template_hash]
    ready = _current(snapshot.ready_pods, outcome)
    if old:
        return "RollingOut", f"{len(ready)} of {wanted} pods serve the present spec, {len(old)} run the one before"
    return "PodsStarting", f"{len(ready)} of {wanted} pods are ready"


def _available(snapshot: Snapshot, outcome: Outcome) -> _Verdict:
    ready = len(snapshot.ready_pods)
    if ready:
        return _Verdict(TRUE, "PodsServe", f"{ready} of {outcome.desired_replicas} pods serve")
    if outcome.desired_replicas == 0:
        return _Verdict(FALSE, "ScaledToZero", "0 replicas are asked for")
    return _Verdict(FALSE, "NoPodReady", f"none of {outcome.desired_replicas} pods is ready")


def _progressing(snapshot: Snapshot, outcome: Outcome) -> _Verdict:
    if outcome.error is not None:
        return _Verdict(FALSE, outcome.error.reason, "the spec must change before work can go on")
    pods = snapshot.live_pods
    settled = len(pods) == outcome.desired_replicas and len(_current(snapshot.ready_pods, outcome)) == len(pods)
    if settled and len(pods) == len(snapshot.pods):
        return _Verdict(FALSE, "Settled", "all pods are as asked for")
    trouble = _trouble(snapshot, outcome)
    if trouble is not None:
        return _Verdict(FALSE, trouble.reason, trouble.message)
    if len(pods) > outcome.desired_replicas or len(pods) < len(snapshot.pods):
        return _Verdict(TRUE, "PodsStopping", f"down to {outcome.desired_replicas} pods")
    return _Verdict(TRUE, *_underway(snapshot, outcome))


def _shift_verified(snapshot: Snapshot) -> _Verdict:
    # A pod whose gears disagree ends instead of becoming ready.
    for pod in snapshot.live_pods:
        if pod.failure is not None and pod.failure.reason == contract.REASON_SELF_CHECK_FAILED:
            return _Verdict(FALSE, pod.failure.reason, f"pod {pod.name}: {pod.failure.message}")
    ready = snapshot.ready_pods
    if not ready:
        return _Verdict(UNKNOWN, "NoPodReady", "no pod is ready to be asked")
    checks = {pod.name: snapshot.states[pod.uid].self_check for pod in ready if pod.uid in snapshot.states}
    for name, check in checks.items():
        if check is not None and not check.passed:
            return _Verdict(FALSE, contract.REASON_SELF_CHECK_FAILED, f"pod {name}: {check.message}")
    silent = [pod.name for pod in ready if checks.get(pod.name) is None]
    if silent:
        return _Verdict(UNKNOWN, "NotReported", f"pod {silent[0]} has not reported its self-check")
    return _Verdict(TRUE, "GearsAgree", "all gears agreed in the self-check of every ready pod")


def _policy_in_sync(snapshot: Snapshot, outcome: Outcome) -> _Verdict:
    ready, generation = snapshot.ready_pods, outcome.policy_generation
    if not ready:
        return _Verdict(UNKNOWN, "NoPodReady", f"no ready pod to apply generation {generation}")
    behind = [pod for pod in ready if not _applied(snapshot, pod, generation)]
    if behind:
        done = len(ready) - len(behind)
        message = f"{done} of {len(ready)} ready pods applied generation {generation}; not yet {behind[0].name}"
        return _Verdict(FALSE, "Applying", message)
    return _Verdict(TRUE, "Applied", f"every rank of every ready pod applied generation {generation}")


def _applied(snapshot: Snapshot, pod: Pod, generation: int) -> bool:
    state = snapshot.states.get(pod.uid)
    return state is not None and state.generation_applied >= generation


def _current(pods: tuple[Pod, ...], outcome: Outcome) -> tuple[Pod, ...]:
    return tuple(pod for pod in pods if pod.template_hash == outcome.template_hash)


def _deployment_condition(snapshot: Snapshot, type_: str) -> Object:
    deployment = snapshot.children.get(("Deployment", snapshot.key.name), {})
    found: list[Object] = deployment.get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == type_), {})
