"""Makes a failing case smaller while it still fails."""

from __future__ import annotations

from collections.abc import Callable

from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, Tally

MAX_TRIES = 120


def shrink(failure: Failure, check: Callable[[Case], Tally | Failure], max_tries: int = MAX_TRIES) -> Failure:
    """Greedy: take the first smaller case that fails too, whatever its failure is, and begin again from there."""
    tries = 0
    while True:
        for case in failure.case.smaller(failure.step):
            if tries >= max_tries:
                return failure
            tries += 1
            result = check(case)
            if isinstance(result, Failure):
                failure = result
                break
        else:
            return failure
