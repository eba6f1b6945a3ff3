"""`spec.shift.schedules`: windows of time in which another shift policy holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shiftcore.schedules import DAY_MINUTES, EVERY_DAY, Window

from shiftoperator.errors import InvalidSpecError
from shiftoperator.spec.shift import Policy, policy

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Schedule:
    """A policy that stands in the place of `shift.policy` and `shift.thresholdTokens` while its window holds."""

    name: str
    window: Window
    policy: Policy


def schedules(shift: dict[str, Any]) -> tuple[Schedule, ...]:
    asked = shift.get("schedules", [])
    known: set[str] = set()
    for schedule in asked:
        if schedule["name"] in known:
            raise InvalidSpecError(f"shift.schedules has the name {schedule['name']!r} twice; rename one")
        known.add(schedule["name"])
    return tuple(_schedule(schedule) for schedule in asked)


def _schedule(asked: dict[str, Any]) -> Schedule:
    name, start, end = asked["name"], asked["start"], asked["end"]
    where = f"shift.schedules {name!r}"
    if start == end:
        raise InvalidSpecError(f"{where}: start and end are both {start}; write 00:00 to 24:00 for a whole day")
    days = asked.get("days", DAYS)
    if not days or not set(days) <= set(DAYS):
        raise InvalidSpecError(f"{where}: days {days!r} must be some of {', '.join(DAYS)}")
    window = Window(
        start=_minutes(where, "start", start),
        end=DAY_MINUTES if end == "24:00" else _minutes(where, "end", end),
        zone=_zone(where, asked.get("timeZone", "UTC")),
        days=frozenset(map(DAYS.index, days)) if "days" in asked else EVERY_DAY,
    )
    return Schedule(name, window, policy(asked))


def _minutes(where: str, field: str, text: str) -> int:
    found = _TIME.fullmatch(text)
    if found is None:
        raise InvalidSpecError(f"{where}: {field} {text!r} is no time of day; write it as 22:00")
    return int(found[1]) * 60 + int(found[2])


def _zone(where: str, name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidSpecError(
            f"{where}: timeZone {name!r} is not known; write a name of the IANA database, as Europe/Berlin"
        ) from error
