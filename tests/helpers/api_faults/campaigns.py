"""The API faults at full count, for tests/campaign.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from helpers.api_faults.case import Case
from helpers.api_faults.check import Laboratory, Result
from helpers.api_faults.many import AT_ONCE, laboratory, replay_command, run_all, take
from helpers.api_faults.planted import BUGS
from helpers.campaign_outcome import Outcome

PLANS = 168
PLANS_PER_BUG = 24

T = TypeVar("T")


def api_faults(seed: int, scale: float) -> Outcome:
    summary = with_laboratory(lambda lab: run_all(lab, take(seed, max(1, round(PLANS * scale)))))
    notes = [str(summary)]
    for failure in summary.failures:
        notes += [f"{failure}\n{failure.log}", f"  {replay_command(failure.case)}"]
    return Outcome(len(summary.results), "plans", len(summary.failures), tuple(notes))


def planted_operator_bugs(seed: int, _scale: float) -> Outcome:
    """Bad is a bug that no plan shows. Their number is a bound and not a count, so that no scale changes it."""
    found = with_laboratory(lambda lab: _find_all(lab, seed))
    notes = [
        f"{name}: {f'plan {number}, {result.case}: {result.wrong[0]}' if result else 'NOT FOUND'} ({BUGS[name].story})"
        for name, (number, result) in found.items()
    ]
    return Outcome(len(BUGS), "bugs", sum(result is None for _, result in found.values()), tuple(notes))


def replay(line: str) -> Result:
    return with_laboratory(lambda lab: lab.check(Case.parse(line)))


def with_laboratory(work: Callable[[Laboratory], Awaitable[T]]) -> T:
    async def inside(opened: Laboratory) -> T:
        await opened.open()
        try:
            return await work(opened)
        finally:
            await opened.close()

    with laboratory() as made:
        return asyncio.run(inside(made))


async def find(lab: Laboratory, name: str, seed: int) -> tuple[int, Result | None]:
    """The number of the first plan that shows a bug, counted from 1, and what it showed."""
    bug = BUGS[name]
    for i in range(PLANS_PER_BUG):
        drawn = Case.draw(seed + i, bug.workloads[i % len(bug.workloads)])
        case = Case(drawn.workload, drawn.faults, drawn.standby or bug.standby)
        result = await lab.check(case, name)
        if result.wrong:
            return i + 1, result
    return PLANS_PER_BUG, None


async def _find_all(lab: Laboratory, seed: int) -> dict[str, tuple[int, Result | None]]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> tuple[int, Result | None]:
        async with places:
            return await find(lab, name, seed)

    return dict(zip(BUGS, await asyncio.gather(*map(one, BUGS)), strict=True))
