"""The fence: which policy replaces which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shiftcore.layout import Gear, allowed_gears
from shiftcore.policy import (
    MAX_THRESHOLD_TOKENS,
    Mode,
    Policy,
    PolicyError,
    StaleGenerationError,
    accept,
)

GEARS = allowed_gears(Gear(4, 1))
CURRENT = Policy(Mode.AUTO, 100, None, 7)


@pytest.mark.parametrize(
    ("case", "new", "error", "sentence"),
    [
        ("the next generation", replace(CURRENT, mode=Mode.LATENCY, generation=8), None, ""),
        ("a jump", replace(CURRENT, generation=900), None, ""),
        ("the same again", CURRENT, None, ""),
        ("a gear of the pod", Policy(gear="sp2tp2", generation=8), None, ""),
        ("older", replace(CURRENT, generation=6), StaleGenerationError, "generation 6 is older than 7"),
        ("the first", Policy(), StaleGenerationError, "generation 0 is older than 7"),
        ("same number, other mode", replace(CURRENT, mode=Mode.LATENCY), PolicyError, "7 was accepted with another"),
        ("same number, other threshold", replace(CURRENT, threshold_tokens=None), PolicyError, "raise the generation"),
        ("same number, a gear", replace(CURRENT, gear="tp4"), PolicyError, "raise the generation"),
        ("a foreign gear", Policy(gear="tp2", generation=8), PolicyError, "gear tp2 is not one of tp4, sp2tp2, sp4"),
    ],
)
def test_fence(case: str, new: Policy, error: type[Exception] | None, sentence: str) -> None:
    if error is None:
        assert accept(CURRENT, new, GEARS) == new, case
    else:
        with pytest.raises(error, match=sentence):
            accept(CURRENT, new, GEARS)


@pytest.mark.parametrize("threshold", [0, -1, MAX_THRESHOLD_TOKENS + 1])
def test_a_threshold_out_of_range_is_refused(threshold: int) -> None:
    with pytest.raises(PolicyError, match=f"threshold {threshold} is outside 1..{MAX_THRESHOLD_TOKENS}"):
        Policy(threshold_tokens=threshold)


@pytest.mark.parametrize("threshold", [None, 1, MAX_THRESHOLD_TOKENS])
def test_a_threshold_at_the_edge_holds(threshold: int | None) -> None:
    assert Policy(threshold_tokens=threshold).threshold_tokens == threshold


def test_senseless_policies_are_refused() -> None:
    with pytest.raises(PolicyError, match="generation -1 is negative"):
        Policy(generation=-1)
    with pytest.raises(PolicyError, match="'fast' is no gear"):
        Policy(gear="fast")


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        ({"min_threshold_tokens": 0}, "threshold 0 is outside"),
        ({"max_threshold_tokens": MAX_THRESHOLD_TOKENS + 1}, "is outside"),
        ({"min_threshold_tokens": 9, "max_threshold_tokens": 8}, "at least 9 and at most 8"),
        ({"min_threshold_tokens": 9, "threshold_tokens": 8}, "threshold 8 is outside its bounds 9"),
    ],
)
def test_bounds_that_cannot_hold_are_refused(bounds: dict[str, int], sentence: str) -> None:
    with pytest.raises(PolicyError, match=sentence):
        Policy(**bounds)  # type: ignore[arg-type]
