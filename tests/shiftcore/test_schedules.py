"""Windows of the clock on the wall, against a walk over the minutes and against what the clock shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftcore.schedules import EVERY_DAY, Turn, Window, WindowError, turn

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
NIGHT = Window(22 * 60, 6 * 60, BERLIN)
DAYS = [f"2026-11-{day}" for day in range(23, 30)]  # a Monday and the days after it


def at(text: str, zone: object = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("2026-11-21 21:59", Turn(None, at("2026-11-21 22:00", BERLIN), 0)),
        ("2026-11-21 22:00", Turn(0, at("2026-11-22 06:00", BERLIN), None)),
        ("2026-11-22 00:00", Turn(0, at("2026-11-22 06:00", BERLIN), None)),
        ("2026-11-22 05:59", Turn(0, at("2026-11-22 06:00", BERLIN), None)),
        ("2026-11-22 06:00", Turn(None, at("2026-11-22 22:00", BERLIN), 0)),
    ],
)
def test_a_window_over_midnight(shown: str, expected: Turn) -> None:
    assert turn([NIGHT], at(shown, BERLIN)) == expected


def test_days_are_those_on_which_the_window_begins() -> None:
    friday = Window(22 * 60, 6 * 60, BERLIN, frozenset({4}))
    assert turn([friday], at(f"{DAYS[5]} 05:00", BERLIN)).index == 0, "Saturday morning belongs to Friday"
    assert turn([friday], at(f"{DAYS[4]} 05:00", BERLIN)).index is None
    assert turn([friday], at(f"{DAYS[5]} 06:00", BERLIN)).until == at("2026-12-04 22:00", BERLIN)


def test_of_windows_that_overlap_the_first_holds() -> None:
    batch, lunch = Window(0, 24 * 60, UTC), Window(12 * 60, 13 * 60, UTC)
    noon = at(f"{DAYS[0]} 12:30")
    assert turn([lunch, batch], noon) == Turn(0, at(f"{DAYS[0]} 13:00"), 1)
    assert turn([batch, lunch], noon) == Turn(0, None, None), "the second is never its turn"


def test_windows_that_touch_leave_no_gap() -> None:
    windows = [Window(0, 12 * 60, UTC), Window(12 * 60, 24 * 60, UTC)]
    assert turn(windows, at(f"{DAYS[0]} 11:59")) == Turn(0, at(f"{DAYS[0]} 12:00"), 1)
    assert turn(windows, at(f"{DAYS[0]} 12:00")) == Turn(1, at(f"{DAYS[1]} 00:00"), 0)


def test_the_night_the_clocks_are_put_forward_is_an_hour_shorter() -> None:
    begin, end = at("2026-03-28 22:00", BERLIN), at("2026-03-29 06:00", BERLIN)
    assert end - begin == 7 * 3600
    assert turn([NIGHT], begin) == Turn(0, end, None)
    assert turn([NIGHT], end - 1).index == 0


def test_the_night_the_clocks_are_put_back_is_an_hour_longer() -> None:
    begin, end = at("2026-10-24 22:00", BERLIN), at("2026-10-25 06:00", BERLIN)
    assert end - begin == 9 * 3600
    assert turn([NIGHT], begin) == Turn(0, end, None)


def test_a_skipped_time_counts_as_if_the_clocks_had_not_been_put_forward() -> None:
    """On 2026-03-08 New York goes from 02:00 to 03:00."""
    from_gap = Window(2 * 60 + 30, 5 * 60, NEW_YORK)
    assert turn([from_gap], at("2026-03-08 00:00", NEW_YORK)).until == at("2026-03-08 03:30", NEW_YORK)
    to_gap = Window(60, 2 * 60 + 30, NEW_YORK)
    assert turn([to_gap], at("2026-03-08 01:30", NEW_YORK)).until == at("2026-03-08 03:30", NEW_YORK)


def test_a_window_without_length_does_not_hold_that_day() -> None:
    skipped = Window(2 * 60 + 30, 3 * 60 + 15, NEW_YORK, frozenset({6}))
    assert turn([skipped], at("2026-03-08 00:00", NEW_YORK)) == Turn(None, at("2026-03-15 02:30", NEW_YORK), 0)


def test_a_time_shown_twice_counts_when_it_is_shown_first() -> None:
    """On 2026-11-01 New York goes from 02:00 back to 01:00."""
    first, second = (datetime(2026, 11, 1, 1, 30, tzinfo=NEW_YORK, fold=fold).timestamp() for fold in (0, 1))
    assert second - first == 3600
    begins = Window(90, 3 * 60, NEW_YORK)
    assert turn([begins], first - 1).until == first
    assert turn([begins], second - 1).index == turn([begins], second).index == 0, "and not once more"
    ends = Window(0, 90, NEW_YORK)
    assert turn([ends], second - 1).index is None


def test_what_never_changes_has_no_end() -> None:
    assert turn([Window(0, 24 * 60, BERLIN)], at("2026-10-24 22:00")) == Turn(0, None, None)
    assert turn([], 0.0) == Turn(None, None, None)


@pytest.mark.parametrize(
    "asked", [(60, 60, EVERY_DAY), (-1, 60, EVERY_DAY), (24 * 60, 60, EVERY_DAY), (0, 24 * 60 + 1, EVERY_DAY),
              (0, 60, frozenset()), (0, 60, frozenset({7}))],
)  # fmt: skip
def test_what_cannot_hold_is_refused(asked: tuple[int, int, frozenset[int]]) -> None:
    start, end, days = asked
    with pytest.raises(WindowError):
        Window(start, end, UTC, days)


WINDOWS = st.builds(
    lambda start, length, days, hours: Window(start, _end(start, length), timezone(timedelta(hours=hours)), days),
    st.integers(0, 24 * 60 - 1),
    st.integers(1, 24 * 60 - 1),
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(-12, 14),
)


def _end(start: int, length: int) -> int:
    return (start + length) % (24 * 60)


def _holds(window: Window, now: float) -> bool:
    """By the minute, without a notion of a border; of zones whose clocks are never changed."""
    shown = datetime.fromtimestamp(now, window.zone)
    minute, day = shown.hour * 60 + shown.minute, shown.weekday()
    if window.start < window.end:
        return window.start <= minute < window.end and day in window.days
    return (minute >= window.start and day in window.days) or (minute < window.end and (day - 1) % 7 in window.days)


@given(st.lists(WINDOWS, max_size=4), st.integers(0, 7 * 24 * 60))
@settings(max_examples=60, deadline=None)
def test_like_a_walk_over_the_minutes(windows: list[Window], minute: int) -> None:
    now = at(DAYS[0]) + minute * 60.0

    def who(moment: float) -> int | None:
        return next((index for index, window in enumerate(windows) if _holds(window, moment)), None)

    found = turn(windows, now)
    assert found.index == who(now)
    # Borders lie on whole minutes, as all zones here are whole hours away.
    walked = next((now + 60.0 * m for m in range(1, 8 * 24 * 60) if who(now + 60.0 * m) != found.index), None)
    assert found.until == walked
    assert walked is None or found.next_index == who(walked)
