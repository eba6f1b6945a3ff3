"""Which policy the clock asks for, and how the status tells it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from shiftcore.schedules import turn

from shiftoperator.snapshot import Object
from shiftoperator.spec import Spec, with_policy
from shiftoperator.status.gears import schedule_words


@dataclass(frozen=True)
class InForce:
    """The spec with the policy of the schedule that holds, and `status.schedule`, None without schedules."""

    spec: Spec
    told: Object | None

    @property
    def words(self) -> str:
        """Which schedule holds and until when; empty while none does."""
        return schedule_words(self.told)


def in_force(spec: Spec, now: float) -> InForce:
    """`now`: seconds since 1970."""
    if not spec.schedules:
        return InForce(spec, None)
    found = turn([schedule.window for schedule in spec.schedules], now)
    told: Object = {}
    if found.index is not None:
        schedule = spec.schedules[found.index]
        policy = schedule.policy.as_status()
        told = {"name": schedule.name, "policy": policy.pop("mode"), **policy}
        spec = with_policy(spec, schedule.policy)
    if found.until is not None:
        told["until"] = datetime.fromtimestamp(found.until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if found.next_index is not None:
        told["next"] = spec.schedules[found.next_index].name
    return InForce(spec, told)
