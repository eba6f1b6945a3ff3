"""The gear fuzz at full count, for tests/campaign.py."""

from __future__ import annotations

from helpers.campaign_outcome import Outcome
from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, check
from helpers.gear_fuzz.many import fuzz, replay_command
from helpers.gear_fuzz.planted import BUGS, Bug

SHIFTS = 10_000
CASES_PER_BUG = 40


def gear_fuzz(seed: int, scale: float) -> Outcome:
    result = fuzz(seed, max(1, round(SHIFTS * scale)))
    notes = [str(result), *(f"{failure}\n  {replay_command(failure)}" for failure in result.failures)]
    return Outcome(result.tally.shifts, "shifts", len(result.failures), tuple(notes))


def planted_bugs(seed: int, _scale: float) -> Outcome:
    """Bad is a bug that no case finds. Their number is a bound and not a count, so that no scale changes it."""
    found = {bug: _cases_to_find(bug, seed) for bug in BUGS}
    notes = [
        f"{bug.name}: {f'case {number}' if number else 'NOT FOUND'} ({bug.story})" for bug, number in found.items()
    ]
    return Outcome(len(BUGS), "bugs", sum(number is None for number in found.values()), tuple(notes))


def _cases_to_find(bug: Bug, seed: int) -> int | None:
    outcomes = (check(Case.draw(seed + i, bug.ranks, bug.family), bug.wiring) for i in range(CASES_PER_BUG))
    return next((i for i, outcome in enumerate(outcomes, 1) if isinstance(outcome, Failure)), None)
