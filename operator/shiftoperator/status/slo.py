"""SLOMet: the targets of spec.slo against the times of the slowest pod, at the percentile asked for.

A target is missed as soon as it is exceeded, and met again only with some room and after a while: a service that works
at its limit must not rewrite its status every few seconds. The figures themselves are metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

from shiftprotos import contract

from shiftoperator.snapshot import Load, slowest
from shiftoperator.spec import percentile_asked
from shiftoperator.status import reasons
from shiftoperator.status.view import FALSE, TRUE, UNKNOWN, Check, Verdict, View, first

# A target that was missed counts as met from this share of it on.
MET_AGAIN = 0.9
# A miss stands for at least so long.
MISS_SECONDS = 60.0
# Traffic that comes now and then is not told every time it pauses.
QUIET_SECONDS = 300.0


@dataclass(frozen=True)
class Figure:
    """One target and the worst figure of all ready pods, both in seconds; 0 where there is none."""

    name: str
    field: str
    missed: str
    target_seconds: float
    seconds: float

    def exceeds(self, share: float) -> bool:
        return 0 < self.target_seconds * share < self.seconds


def slo_met(view: View) -> Verdict:
    return first(_SLO_MET, view)


def figures(view: View) -> tuple[Figure, Figure]:
    targets = view.snapshot.resource["spec"].get("slo") or {}
    loads, percentile = _loads(view), percentile_asked(view.snapshot.resource["spec"])
    ttft, tpot = slowest(loads, percentile)
    return (
        Figure("time to the first token", "ttftMs", reasons.TTFT_MISSED, targets.get("ttftMs", 0) / 1000, ttft),
        Figure("time per output token", "tpotMs", reasons.TPOT_MISSED, targets.get("tpotMs", 0) / 1000, tpot),
    )


def _loads(view: View) -> tuple[Load, ...]:
    return tuple(view.snapshot.states[pod.uid].load for pod in view.ready if pod.uid in view.snapshot.states)


def _no_target(view: View) -> Verdict | None:
    if any(figure.target_seconds for figure in figures(view)):
        return None
    return Verdict(UNKNOWN, reasons.NO_TARGET, "spec.slo names no target")


def _nobody_serves(view: View) -> Verdict | None:
    return None if view.ready else Verdict(UNKNOWN, reasons.NO_POD_READY, "no pod is ready")


def _missed(view: View) -> Verdict | None:
    for figure in figures(view):
        if figure.exceeds(MET_AGAIN if _missed_before(view, figure.missed) else 1.0):
            return _miss(view, figure)
    return None


def _miss(view: View, figure: Figure) -> Verdict:
    percentile = percentile_asked(view.snapshot.resource["spec"])
    target = f"{figure.target_seconds * 1000:.0f} ms of spec.slo.{figure.field}"
    message = f"the {percentile}th percentile of the {figure.name} exceeds the target of {target}"
    return Verdict(FALSE, figure.missed, message)


def _missed_lately(view: View) -> Verdict | None:
    return _kept(view, FALSE, MISS_SECONDS)


def _no_traffic(view: View) -> Verdict | None:
    if any(figure.target_seconds and figure.seconds for figure in figures(view)):
        return None
    quiet = Verdict(UNKNOWN, reasons.NO_TRAFFIC, "no request finished in the last minute")
    return _kept(view, TRUE, QUIET_SECONDS) or quiet


def _met(view: View) -> Verdict:
    return Verdict(TRUE, reasons.TARGETS_MET, "every target of spec.slo is met by every ready pod")


def _missed_before(view: View, reason: str) -> bool:
    before = view.before(contract.CONDITION_SLO_MET)
    return before is not None and before["reason"] == reason and _of_this_spec(view)


def _kept(view: View, status: str, seconds: float) -> Verdict | None:
    """What was said before, if it was this and not long ago."""
    before = view.before(contract.CONDITION_SLO_MET)
    if before is None or before["status"] != status or not _of_this_spec(view):
        return None
    if view.seconds_in(contract.CONDITION_SLO_MET, status) >= seconds:
        return None
    return Verdict(before["status"], before["reason"], before["message"])


def _of_this_spec(view: View) -> bool:
    before = view.before(contract.CONDITION_SLO_MET)
    return before is not None and before.get("observedGeneration") == view.snapshot.generation


_SLO_MET: tuple[Check, ...] = (_no_target, _nobody_serves, _missed, _missed_lately, _no_traffic, _met)
