"""What the runtimes prove and apply: ShiftVerified and PolicyInSync."""

from __future__ import annotations

from shiftprotos import contract

from shiftoperator.snapshot import Object, Pod, Snapshot
from shiftoperator.spec import section
from shiftoperator.status import reasons
from shiftoperator.status.view import FALSE, TRUE, UNKNOWN, Check, Verdict, View, first


def shift_verified(view: View) -> Verdict:
    return first(_SHIFT_VERIFIED, view)


def policy_in_sync(view: View) -> Verdict:
    generation = view.outcome.policy_generation
    if not view.ready:
        return Verdict(UNKNOWN, reasons.NO_POD_READY, f"no ready pod to apply generation {generation}")
    late = behind(view)
    if late:
        done = len(view.ready) - len(late)
        message = f"{done} of {len(view.ready)} ready pods applied generation {generation}; not yet {late[0].name}"
        return Verdict(FALSE, reasons.APPLYING, message)
    message = f"every rank of every ready pod applied generation {generation}{_schedule(view)}{_bias(view)}"
    return Verdict(TRUE, reasons.APPLIED, message)


def schedule_words(told: Object | None) -> str:
    """Which schedule holds and until when, of `status.schedule`; empty while none does."""
    if not told or "name" not in told:
        return ""
    until = f" until {told['until']}" if "until" in told else ""
    return f"schedule {told['name']} holds{until}"


def _schedule(view: View) -> str:
    words = schedule_words(view.outcome.schedule)
    return f"; {words}" if words else ""


def _bias(view: View) -> str:
    """Why the policy is neither the user's nor that of a schedule."""
    set_, asked = view.snapshot.status.get("policy") or {}, section(view.snapshot.resource["spec"], "shift")
    wanted = (view.outcome.schedule or {}).get("policy") or asked.get("policy", "Auto")
    if set_.get("mode", wanted) == wanted:
        return ""
    return f": {set_['mode']} in place of {wanted}, while pods are away and those that serve are busy"


def behind(view: View) -> tuple[Pod, ...]:
    """Ready pods that have not reported the policy last set."""
    generation = view.outcome.policy_generation
    late = [pod for pod in view.ready if not _applied(view.snapshot, pod, generation)]
    return tuple(sorted(late, key=lambda pod: pod.name))


def _applied(snapshot: Snapshot, pod: Pod, generation: int) -> bool:
    state = snapshot.states.get(pod.uid)
    return state is not None and state.generation_applied >= generation


def _ended_in_the_check(view: View) -> Verdict | None:
    # A pod whose gears disagree ends instead of becoming ready.
    for pod in view.live:
        if pod.failure is not None and pod.failure.reason == contract.REASON_SELF_CHECK_FAILED:
            return Verdict(FALSE, pod.failure.reason, f"pod {pod.name}: {pod.failure.message}")
    return None


def _nobody_to_ask(view: View) -> Verdict | None:
    return None if view.ready else Verdict(UNKNOWN, reasons.NO_POD_READY, "no pod is ready to be asked")


def _disagrees(view: View) -> Verdict | None:
    for pod in view.ready:
        state = view.snapshot.states.get(pod.uid)
        if state is not None and state.self_check is not None and not state.self_check.passed:
            return Verdict(FALSE, contract.REASON_SELF_CHECK_FAILED, f"pod {pod.name}: {state.self_check.message}")
    return None


def _silent(view: View) -> Verdict | None:
    for pod in view.ready:
        state = view.snapshot.states.get(pod.uid)
        if state is None or state.self_check is None:
            return Verdict(UNKNOWN, reasons.NOT_REPORTED, f"pod {pod.name} has not reported its self-check")
    return None


def _agree(view: View) -> Verdict:
    return Verdict(TRUE, reasons.GEARS_AGREE, "all gears agreed in the self-check of every ready pod")


_SHIFT_VERIFIED: tuple[Check, ...] = (_ended_in_the_check, _nobody_to_ask, _disagrees, _silent, _agree)
