"""Whether what was asked for serves: Ready, Available, Progressing and Paused."""

from __future__ import annotations

from shiftoperator.status import reasons
from shiftoperator.status.trouble import trouble, waiting_for_drain
from shiftoperator.status.view import FALSE, TRUE, Check, Verdict, View, first


def ready(view: View) -> Verdict:
    return first(_READY, view)


def available(view: View) -> Verdict:
    return first(_AVAILABLE, view)


def progressing(view: View) -> Verdict:
    return first(_PROGRESSING, view)


def paused(view: View) -> Verdict:
    if not view.suspended and view.rollout_paused:
        return Verdict(TRUE, reasons.ROLLOUT_PAUSED, "spec.rollout.paused is set: no pod is replaced")
    if not view.suspended:
        return Verdict(FALSE, reasons.NOT_SUSPENDED, "spec.suspend is not set")
    left = len(view.snapshot.pods)
    if left:
        return Verdict(TRUE, reasons.SUSPENDING, "spec.suspend is set; pods end the requests that they have")
    return Verdict(TRUE, reasons.SUSPENDED, "spec.suspend is set: no pod runs, replicas keep their number for later")


def _refused(view: View) -> Verdict | None:
    error = view.outcome.error
    return Verdict(FALSE, error.reason, error.message) if error is not None else None


def _suspended(view: View) -> Verdict | None:
    if not view.suspended:
        return None
    return Verdict(FALSE, reasons.SUSPENDED, "spec.suspend is set; set it to false to serve again")


def _zero_as_asked(view: View) -> Verdict | None:
    if view.wanted:
        return None
    return Verdict(TRUE, reasons.SCALED_TO_ZERO, "0 replicas are asked for and none runs")


def _rolled_back(view: View) -> Verdict | None:
    return Verdict(FALSE, reasons.ROLLED_BACK, _why_back(view)) if view.rolled_back is not None else None


def _why_back(view: View) -> str:
    bad = view.rolled_back
    assert bad is not None, "asked only of a resource that was rolled back"
    return (
        f"revision {bad.revision} failed, and pods run revision {bad.good}, the last that served; "
        f"change the spec to try again. {bad.reason}: {bad.message}"
    )


def _all_serve(view: View) -> Verdict | None:
    if len(view.current) < view.wanted:
        return None
    return Verdict(TRUE, reasons.ALL_PODS_READY, f"{len(view.current)} of {view.wanted} pods serve")


def _trouble(view: View) -> Verdict | None:
    found = trouble(view)
    return Verdict(FALSE, found.reason, found.message) if found is not None else None


def _drain_first(view: View) -> Verdict | None:
    message = waiting_for_drain(view.snapshot)
    return Verdict(FALSE, reasons.WAITING_FOR_DRAIN, message) if message else None


def _grows(view: View) -> Verdict | None:
    """What served in full is Ready while pods are added and none of those is missing."""
    if not _scaling_out(view):
        return None
    return Verdict(TRUE, reasons.SCALING_OUT, _count(view))


def _scaling_out(view: View) -> bool:
    return not view.old and 0 < view.settled <= len(view.current) < view.wanted


def _on_their_way(view: View) -> Verdict:
    return Verdict(FALSE, *_underway(view))


def _underway(view: View) -> tuple[str, str]:
    if view.old:
        count = f"{len(view.current)} of {view.wanted} pods serve the present spec, {len(view.old)} run the one before"
        return (reasons.ROLLOUT_PAUSED if view.rollout_paused else reasons.ROLLING_OUT), count
    return (reasons.SCALING_OUT if _scaling_out(view) else reasons.PODS_STARTING), _count(view)


def _count(view: View) -> str:
    return f"{len(view.current)} of {view.wanted} pods are ready"


def _some_serve(view: View) -> Verdict | None:
    if not view.ready:
        return None
    return Verdict(TRUE, reasons.PODS_SERVE, f"{len(view.ready)} of {view.wanted} pods serve")


def _none_asked(view: View) -> Verdict | None:
    if view.wanted:
        return None
    return Verdict(FALSE, reasons.SCALED_TO_ZERO, "0 replicas are asked for")


def _none_serves(view: View) -> Verdict:
    return Verdict(FALSE, reasons.NO_POD_READY, f"none of {view.wanted} pods is ready")


def _stands_still(view: View) -> Verdict | None:
    error = view.outcome.error
    message = "what condition Ready names must be mended before work can go on"
    return Verdict(FALSE, error.reason, message) if error is not None else None


def _settled(view: View) -> Verdict | None:
    as_asked = len(view.live) == view.wanted == len(view.current)
    if not as_asked or len(view.live) < len(view.snapshot.pods):
        return None
    return Verdict(FALSE, reasons.SETTLED, "all pods are as asked for")


def _blocked(view: View) -> Verdict | None:
    found = trouble(view) if view.wanted else None
    return Verdict(FALSE, found.reason, found.message) if found is not None else None


def _drains(view: View) -> Verdict | None:
    message = waiting_for_drain(view.snapshot)
    return Verdict(TRUE, reasons.WAITING_FOR_DRAIN, message) if message else None


def _is_back(view: View) -> Verdict | None:
    if view.rolled_back is None:
        return None
    there = not view.old and len(view.current) >= view.wanted
    return Verdict(FALSE if there else TRUE, reasons.ROLLED_BACK, _why_back(view))


def _waits_for_the_user(view: View) -> Verdict | None:
    if not view.old or not view.rollout_paused:
        return None
    return Verdict(FALSE, *_underway(view))


def _stopping(view: View) -> Verdict | None:
    if len(view.live) <= view.wanted and len(view.live) == len(view.snapshot.pods):
        return None
    return Verdict(TRUE, reasons.PODS_STOPPING, f"down to {view.wanted} pods")


def _moves(view: View) -> Verdict:
    return Verdict(TRUE, *_underway(view))


_READY: tuple[Check, ...] = (
    _refused,
    _suspended,
    _zero_as_asked,
    _rolled_back,
    _all_serve,
    _trouble,
    _drain_first,
    _grows,
    _on_their_way,
)
_AVAILABLE: tuple[Check, ...] = (_some_serve, _suspended, _none_asked, _none_serves)
_PROGRESSING: tuple[Check, ...] = (
    _stands_still,
    _is_back,
    _settled,
    _blocked,
    _waits_for_the_user,
    _drains,
    _stopping,
    _moves,
)
