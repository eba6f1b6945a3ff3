"""Which conditions are as they should be."""

from __future__ import annotations

from enum import StrEnum

from shiftcore import scaling
from shiftprotos import contract

from shiftoperator.kubectl.meanings import meaning
from shiftoperator.kubectl.resource import Condition
from shiftoperator.status import reasons


class Health(StrEnum):
    OK = "ok"
    RESTING = "resting"  # not at work, because somebody asked for that or nothing is to be done
    WAITING = "waiting"  # passes by itself, or follows from another condition
    ATTENTION = "attention"


# All others should be True.
_SHOULD_BE_FALSE = {contract.CONDITION_PROGRESSING, contract.CONDITION_DEGRADED, contract.CONDITION_PAUSED}
_RESTING = {
    *(reasons.SUSPENDED, reasons.SUSPENDING, reasons.SCALED_TO_ZERO, reasons.DISABLED, reasons.EXTERNAL_SCALER),
    *(reasons.NO_TARGET, reasons.NO_TRAFFIC),
}
# Another condition has the cause, or the answer comes within seconds.
_FOLLOWING = {reasons.NO_POD_READY, reasons.NO_PODS, reasons.CONTAINER_STARTING, reasons.NOT_REPORTED}
# The autoscaler works and may not do what it would.
_BOUND = {str(scaling.Reason.AT_MAXIMUM), str(scaling.Reason.GPU_BUDGET)}


def health(condition: Condition) -> Health:
    if condition.reason in _RESTING:
        return Health.RESTING
    if condition.reason in _BOUND:
        return Health.ATTENTION
    if condition.type == contract.CONDITION_PROGRESSING and condition.status == "False":
        # It stands still: at its goal, or on the way there.
        return Health.OK if condition.reason == reasons.SETTLED else Health.ATTENTION
    if condition.status == ("False" if condition.type in _SHOULD_BE_FALSE else "True"):
        return Health.OK
    known = meaning(condition.type, condition.reason)
    if condition.reason in _FOLLOWING or (known is not None and known.cure.startswith("wait")):
        return Health.WAITING
    return Health.ATTENTION
