"""How far the pods have come: Scheduled and ModelLoaded."""

from __future__ import annotations

from shiftprotos import contract

from shiftoperator.snapshot import Pod, RuntimeState
from shiftoperator.status import reasons
from shiftoperator.status.trouble import waiting_for_drain
from shiftoperator.status.view import FALSE, TRUE, UNKNOWN, Check, Verdict, View, first

# A pod in one of these has the whole model in memory.
_AFTER_LOAD = contract.PHASES[contract.PHASES.index(contract.PHASE_LOAD) + 1 :]


def scheduled(view: View) -> Verdict:
    return first(_SCHEDULED, view)


def model_loaded(view: View) -> Verdict:
    return first(_MODEL_LOADED, view)


def _not_created(view: View) -> Verdict | None:
    refusal = view.deployment_condition("ReplicaFailure")
    if refusal.get("status") != TRUE or not view.wanted:
        return None
    return Verdict(FALSE, reasons.FAILED_CREATE, refusal.get("message") or "pods cannot be created")


def _no_pods(view: View) -> Verdict | None:
    return None if view.live else Verdict(UNKNOWN, reasons.NO_PODS, "there is no pod")


def _drain_first(view: View) -> Verdict | None:
    message = waiting_for_drain(view.snapshot)
    return Verdict(FALSE, reasons.WAITING_FOR_DRAIN, message) if message else None


def _no_node(view: View) -> Verdict | None:
    for pod in sorted(view.live, key=lambda pod: pod.name):
        if pod.scheduled is False and pod.obstacle is not None:
            gated = pod.obstacle.reason == reasons.SCHEDULING_GATED
            reason = reasons.SCHEDULING_GATED if gated else reasons.UNSCHEDULABLE
            return Verdict(FALSE, reason, f"pod {pod.name}: {pod.obstacle.message}")
    return None


def _not_looked_at(view: View) -> Verdict | None:
    if any(pod.scheduled for pod in view.live):
        return None
    return Verdict(UNKNOWN, reasons.SCHEDULING, "the scheduler has not looked at the pods yet")


def _placed(view: View) -> Verdict:
    return Verdict(TRUE, reasons.PODS_SCHEDULED, "every pod that the scheduler looked at has a node")


def _failed(view: View) -> Verdict | None:
    failures = [pod.failure for pod in sorted(view.live, key=lambda pod: pod.name) if pod.failure is not None]
    if not failures:
        return None
    reason, message = reasons.of_failure(failures[0].reason, failures[0].message)
    return Verdict(FALSE, reason, f"pod {failures[0].pod}: {message}")


def _least_advanced(view: View) -> Verdict | None:
    # One that is emptied at a scale-in is not ready either, and starts no more.
    starting = [pod for pod in view.live if not pod.ready and not pod.retiring]
    if not starting:
        return None
    return min((_progress(pod, view.snapshot.states.get(pod.uid)) for pod in starting), key=lambda p: p[:2])[2]


def _loaded(view: View) -> Verdict:
    return Verdict(TRUE, reasons.LOADED, "every pod has the whole model in memory")


def _progress(pod: Pod, state: RuntimeState | None) -> tuple[int, str, Verdict]:
    """How far the pod is, its name, and what to say if it is the last."""
    if not pod.running:
        return 0, pod.name, Verdict(FALSE, reasons.CONTAINER_STARTING, f"no container runs yet in pod {pod.name}")
    if state is None:
        message = f"pod {pod.name} has not reported how far its start-up is"
        return 1, pod.name, Verdict(UNKNOWN, reasons.NOT_REPORTED, message)
    phase = current_phase(state)
    if not phase:
        return 2, pod.name, Verdict(FALSE, reasons.STARTING, f"pod {pod.name} has begun to start")
    status = TRUE if phase in _AFTER_LOAD else FALSE
    message = f"pod {pod.name} is in start-up phase {phase}{_share(state, phase)}"
    verdict = Verdict(status, reasons.OF_PHASE[phase], message)
    return 3 + contract.PHASES.index(phase), pod.name, verdict


def _share(state: RuntimeState, phase: str) -> str:
    """Of its bytes, in steps of ten percent: a status is not rewritten with every look."""
    of = next((p for p in state.phases if p.name == phase and p.total_bytes), None)
    if of is None:
        return ""
    percent = min(of.num_bytes * 10 // of.total_bytes, 10) * 10
    return f", {percent} % of {of.total_bytes / 2**30:.1f} GiB"


def current_phase(state: RuntimeState) -> str:
    """The last phase that a starting pod has come to; empty before the first."""
    reached = [phase.name for phase in state.phases if phase.name in contract.PHASES]
    return max(reached, key=contract.PHASES.index, default="")


_SCHEDULED: tuple[Check, ...] = (_not_created, _no_pods, _drain_first, _no_node, _not_looked_at, _placed)
_MODEL_LOADED: tuple[Check, ...] = (_no_pods, _failed, _least_advanced, _loaded)
