"""Sliding windows of load figures."""

from __future__ import annotations

import pytest
from shiftcore.loads import Window


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (10, 10), (19, 19), (20, 19), (21, 20), (100, 95)])
def test_the_95th_percentile_is_the_nearest_rank(count: int, expected: int) -> None:
    window = Window(60.0)
    for value in range(count, 0, -1):
        window.add(0.0, value)
    assert window.percentiles(1.0, 95) == (expected,)


def test_percentiles_are_taken_of_the_same_values() -> None:
    window = Window(60.0)
    for value in range(200):
        window.add(0.0, value + 1)
    assert window.percentiles(1.0, 50, 90, 99) == (100, 180, 198)
    assert window.percentiles(100.0, 50, 99) == (0.0, 0.0), "they left the window"


def test_values_leave_the_window() -> None:
    window = Window(10.0)
    window.add(0.0, 50)
    window.add(6.0, 30)
    assert (window.total(9.0), window.rate(9.0)) == (80, 8.0)
    assert (window.total(10.5), window.rate(17.0)) == (30, 0.0)
