"""The conditions of a ShiftDeployment, in the order of the contract."""

from __future__ import annotations

from shiftprotos import contract

from shiftoperator.snapshot import MESSAGE_LIMIT, Object, Snapshot
from shiftoperator.status.degraded import degraded
from shiftoperator.status.gears import policy_in_sync, shift_verified
from shiftoperator.status.pods import model_loaded, scheduled
from shiftoperator.status.ready import available, paused, progressing, ready
from shiftoperator.status.slo import slo_met
from shiftoperator.status.view import FALSE, TRUE, Outcome, Verdict, View


def conditions(snapshot: Snapshot, outcome: Outcome, now: str) -> list[Object]:
    view = View(snapshot, outcome, now)
    return [_condition(type_, decide(view), view) for type_, decide in _DECIDE.items()]


def _condition(type_: str, verdict: Verdict, view: View) -> Object:
    before = view.before(type_)
    same = before is not None and before["status"] == verdict.status
    return {
        "type": type_,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": verdict.message[:MESSAGE_LIMIT],
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else view.now,
        "observedGeneration": view.snapshot.generation,
    }


def _scaling_active(view: View) -> Verdict:
    said = view.outcome.scaling
    return Verdict(TRUE if said.active else FALSE, said.reason, said.message)


_DECIDE = {
    contract.CONDITION_READY: ready,
    contract.CONDITION_AVAILABLE: available,
    contract.CONDITION_PROGRESSING: progressing,
    contract.CONDITION_SCHEDULED: scheduled,
    contract.CONDITION_MODEL_LOADED: model_loaded,
    contract.CONDITION_SHIFT_VERIFIED: shift_verified,
    contract.CONDITION_POLICY_IN_SYNC: policy_in_sync,
    contract.CONDITION_SCALING_ACTIVE: _scaling_active,
    contract.CONDITION_SLO_MET: slo_met,
    contract.CONDITION_DEGRADED: degraded,
    contract.CONDITION_PAUSED: paused,
}
