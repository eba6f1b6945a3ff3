"""Windows of the clock on the wall in which something else holds: who holds now, and until when.

A border is a time of day in the window's zone. Where the clocks are changed it follows RFC 5545: a time that is shown
twice counts when it is shown first, and one that is skipped counts as if the clocks had not been put forward yet, so
02:30 becomes 03:30. A window that this leaves without length does not hold that day.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, tzinfo

DAY_MINUTES = 24 * 60
EVERY_DAY = frozenset(range(7))
# Longer than any window is away: a day of the week comes back after 7 days, and after 14 when it was without length.
_HORIZON_DAYS = 15


class WindowError(ValueError):
    """A window that cannot hold; the message names the value and what is allowed."""


@dataclass(frozen=True)
class Window:
    """From ``start`` to ``end``, minutes after midnight in ``zone``, on ``days`` (0 is Monday), which are those of the
    start. An end that does not come after the start is one of the next day; 1440 is midnight."""

    start: int
    end: int
    zone: tzinfo = field(hash=False)
    days: frozenset[int] = EVERY_DAY

    def __post_init__(self) -> None:
        if not (0 <= self.start < DAY_MINUTES and 0 <= self.end <= DAY_MINUTES):
            raise WindowError(f"a window from minute {self.start} to {self.end} leaves the day; use 0..{DAY_MINUTES}")
        if self.start == self.end:
            raise WindowError(
                f"a window from minute {self.start} to the same is empty; a whole day is 0..{DAY_MINUTES}"
            )
        if not self.days or not self.days <= EVERY_DAY:
            raise WindowError(f"days {sorted(self.days)} must be some of 0..6")


@dataclass(frozen=True)
class Turn:
    """``index`` of the window that holds, ``next_index`` of the one after it, None where no window does. ``until``:
    seconds since 1970, None when it stays so."""

    index: int | None
    until: float | None = None
    next_index: int | None = None


@dataclass(frozen=True)
class _Spell:
    index: int
    begin: float
    end: float


def turn(windows: Sequence[Window], now: float) -> Turn:
    """Who holds at ``now``, seconds since 1970. Of windows that overlap the first one does."""
    spells = [spell for index, window in enumerate(windows) for spell in _spells(index, window, now)]
    holds = _first(spells, now)
    last = now + _HORIZON_DAYS * 86_400
    for border in sorted({at for spell in spells for at in (spell.begin, spell.end) if now < at < last}):
        follows = _first(spells, border)
        if follows != holds:
            return Turn(holds, border, follows)
    return Turn(holds)


def _first(spells: Sequence[_Spell], at: float) -> int | None:
    return min((spell.index for spell in spells if spell.begin <= at < spell.end), default=None)


def _spells(index: int, window: Window, now: float) -> Iterator[_Spell]:
    """From the one that may have begun yesterday to some that begin later than any border that is asked for."""
    today = datetime.fromtimestamp(now, window.zone).date()
    last = window.end if window.end > window.start else window.end + DAY_MINUTES
    for day in (today + timedelta(days=offset) for offset in range(-1, _HORIZON_DAYS + 2)):
        begin, end = _moment(day, window.start, window.zone), _moment(day, last, window.zone)
        if day.weekday() in window.days and begin < end:
            yield _Spell(index, begin, end)


def _moment(day: date, minutes: int, zone: tzinfo) -> float:
    """When the clock shows that many minutes after the day began; seconds since 1970."""
    days, minutes = divmod(minutes, DAY_MINUTES)
    shown = time(minutes // 60, minutes % 60)
    return datetime.combine(day + timedelta(days=days), shown, zone).timestamp()
