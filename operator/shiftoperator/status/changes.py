"""What of a status changed, for the API and for people."""

from __future__ import annotations

from dataclasses import dataclass

from shiftprotos import contract

from shiftoperator.snapshot import Object
from shiftoperator.spec import Policy
from shiftoperator.status import reasons
from shiftoperator.status.view import FALSE, TRUE, UNKNOWN

# Told by Ready, Progressing or Degraded already, or a step on the way to them.
_SILENT = {contract.CONDITION_SCHEDULED, contract.CONDITION_MODEL_LOADED}
# Their reasons follow the load; decisions to scale have Events of their own.
_TALKATIVE = {contract.CONDITION_SCALING_ACTIVE, contract.CONDITION_SLO_MET}
# Unknown is their rest, not a loss of something known.
_RESTING = {contract.CONDITION_SLO_MET, contract.CONDITION_DEGRADED}
_ALARMING = {
    contract.CONDITION_READY: FALSE,
    contract.CONDITION_AVAILABLE: FALSE,
    contract.CONDITION_SHIFT_VERIFIED: FALSE,
    contract.CONDITION_SLO_MET: FALSE,
    contract.CONDITION_DEGRADED: TRUE,
}
# Somebody asked for it.
_WANTED = {reasons.SUSPENDED, reasons.SCALED_TO_ZERO, reasons.ROLLOUT_PAUSED}
# Hold whatever the pods do.
_WITHOUT_PODS = {
    contract.CONDITION_READY,
    contract.CONDITION_PROGRESSING,
    contract.CONDITION_SCALING_ACTIVE,
    contract.CONDITION_PAUSED,
}
# Go when they are not said again. All else stays: the past of the object, and what other parts of the operator store.
_PASSING = ("adaptive", "crossover", "schedule", "slowestStart", "rollout")


@dataclass(frozen=True)
class Transition:
    """A condition that changed in a way a person wants to hear of."""

    type: str
    status: str
    reason: str
    message: str

    @property
    def bad(self) -> bool:
        return _ALARMING.get(self.type) == self.status and self.reason not in _WANTED


def patch(before: Object, after: Object) -> Object:
    """A merge patch that makes `after` of `before`; empty when nothing is to be written."""
    gone = {name: None for name in _PASSING if name in before and name not in after}
    return {**_merge(before, after), **gone}


def _merge(before: Object, after: Object) -> Object:
    """A merge patch keeps what it does not name: fields of an object that are gone are named with null."""
    changed: Object = {}
    for name, value in after.items():
        old = before.get(name)
        if old == value:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            value = {**_merge(old, value), **{lost: None for lost in old if lost not in value}}
        changed[name] = value
    return changed


def unseen(before: Object, built: Object) -> Object:
    """Of a status that was built without having seen everything what holds all the same: why no work is done. All else
    stays as it was said last."""
    old = {condition["type"]: condition for condition in before.get("conditions", ())}
    told = [new if new["type"] in _WITHOUT_PODS else old.get(new["type"]) for new in built["conditions"]]
    conditions = [condition for condition in told if condition is not None]
    return {**before, "observedGeneration": built["observedGeneration"], "conditions": conditions}


def raised_generation(status: Object, policy: Policy, generation: int, now: str) -> Object:
    """What to store before a new policy is pushed: until pods report it, PolicyInSync must not look back."""
    changed: Object = {"policyGeneration": generation, "policy": {"thresholdTokens": None, **policy.as_status()}}
    before: list[Object] = status.get("conditions", [])
    message = f"generation {generation} ({policy.mode}) is being pushed"
    if any(c["type"] == contract.CONDITION_POLICY_IN_SYNC and c["status"] == TRUE for c in before):
        pushed = {"status": FALSE, "reason": reasons.APPLYING, "message": message, "lastTransitionTime": now}
        changed["conditions"] = [
            {**c, **pushed} if c["type"] == contract.CONDITION_POLICY_IN_SYNC else c for c in before
        ]
    return changed


def transitions(before: Object, after: Object) -> tuple[Transition, ...]:
    """Conditions with another status, or still bad for another reason. First sights of what is not True are no news."""
    old = {condition["type"]: condition for condition in before.get("conditions", ())}
    return tuple(
        Transition(new["type"], new["status"], new["reason"], new["message"])
        for new in after.get("conditions", ())
        if new["type"] not in _SILENT and _is_news(old.get(new["type"]), new)
    )


def _is_news(known: Object | None, new: Object) -> bool:
    type_, status = new["type"], new["status"]
    if type_ in _RESTING:
        return _is_news_of_resting(known, new)
    if known is None:
        return bool(status == TRUE)
    if known["status"] != status:
        return True
    return bool(status == FALSE and known["reason"] != new["reason"] and type_ not in _TALKATIVE)


def _is_news_of_resting(known: Object | None, new: Object) -> bool:
    """An alarm, and its end."""
    alarm = _ALARMING[new["type"]]
    if new["status"] == alarm:
        same_reason = known is not None and known["reason"] == new["reason"]
        was_on = known is not None and known["status"] == alarm
        return not was_on or not (same_reason or new["type"] in _TALKATIVE)
    return known is not None and known["status"] == alarm and new["status"] != UNKNOWN
