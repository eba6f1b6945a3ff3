"""Degraded: something works, but less than was asked for, and waiting alone will not mend it."""

from __future__ import annotations

from shiftprotos import contract

from shiftoperator.errors import WRITE_FAILING
from shiftoperator.status import reasons
from shiftoperator.status.gears import behind
from shiftoperator.status.trouble import trouble
from shiftoperator.status.view import FALSE, TRUE, UNKNOWN, Check, Verdict, View, first

# A push takes half a second: a pod that is behind for this long does not follow.
LATE_SECONDS = 60.0


def degraded(view: View) -> Verdict:
    return first(_DEGRADED, view)


def _none_asked(view: View) -> Verdict | None:
    if view.wanted:
        return None
    return _ignored(view) or Verdict(FALSE, reasons.AS_ASKED, "no pod is asked for")


def _nothing_works(view: View) -> Verdict | None:
    return None if view.ready else Verdict(UNKNOWN, reasons.NO_POD_READY, "nothing serves; see condition Ready")


def _spec_refused(view: View) -> Verdict | None:
    error = view.outcome.error
    if error is None:
        return None
    if error.reason == WRITE_FAILING:
        return Verdict(TRUE, WRITE_FAILING, "pods serve what was last written; see condition Ready")
    message = f"pods serve what was last accepted; this spec was refused: {error.reason}: {error.message}"
    return Verdict(TRUE, reasons.SPEC_REFUSED, message)


def _rolled_back(view: View) -> Verdict | None:
    bad = view.rolled_back
    if bad is None:
        return None
    message = f"pods run revision {bad.good}, because revision {bad.revision} of this spec failed: {bad.reason}"
    return Verdict(TRUE, reasons.ROLLED_BACK, message)


def _pods_missing(view: View) -> Verdict | None:
    found = trouble(view)
    if found is None or len(view.current) >= view.wanted:
        return None
    reason = reasons.PODS_FAILING if found.failed else reasons.PODS_BLOCKED
    return Verdict(TRUE, reason, f"{len(view.ready)} of {view.wanted} pods serve; {found.reason}: {found.message}")


def _policy_late(view: View) -> Verdict | None:
    late = behind(view)
    if not late or view.seconds_in(contract.CONDITION_POLICY_IN_SYNC, FALSE) < LATE_SECONDS:
        return None
    silent = [pod for pod in late if pod.uid not in view.snapshot.states]
    if silent:
        message = f"pod {silent[0].name} is ready and does not answer on its control port"
        return Verdict(TRUE, reasons.POD_SILENT, message)
    message = f"pod {late[0].name} has not applied policy generation {view.outcome.policy_generation}"
    return Verdict(TRUE, reasons.POLICY_LATE, message)


def _ignored(view: View) -> Verdict | None:
    return Verdict(TRUE, reasons.ROTATION_IGNORED, view.outcome.ignored) if view.outcome.ignored else None


def _as_asked(view: View) -> Verdict:
    return Verdict(FALSE, reasons.AS_ASKED, "nothing is missing, or what is missing is on its way")


_DEGRADED: tuple[Check, ...] = (
    _none_asked,
    _nothing_works,
    _spec_refused,
    _rolled_back,
    _pods_missing,
    _policy_late,
    _ignored,
    _as_asked,
)
