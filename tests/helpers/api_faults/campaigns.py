"""The API faults at full count, for tests/campaign.py. Tells each plan as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from helpers.api_faults.case import Case
from helpers.api_faults.check import Laboratory, Result
from helpers.api_faults.many import AT_ONCE, laboratory, replay_command, run_all, take
from helpers.api_faults.planted import BUGS, HEALED
from helpers.campaign_outcome import Outcome

PLANS = 168
# Of each planted bug; where none of them shows it, up to the second number.
PLANS_PER_BUG = 8
MOST_PLANS_PER_BUG = 24

T = TypeVar("T")


def api_faults(seed: int, scale: float) -> Outcome:
    plans = take(seed, max(1, round(PLANS * scale)))
    summary = with_laboratory(lambda lab: run_all(lab, plans, tell=_tell))
    notes = [str(summary)]
    for failure in summary.failures:
        notes += [str(failure), f"  {replay_command(failure.case)}"]
    return Outcome(len(summary.results), "plans", len(summary.failures), tuple(notes))


def planted_operator_bugs(seed: int, scale: float) -> Outcome:
    few = max(1, round(PLANS_PER_BUG * scale))
    return judged(with_laboratory(lambda lab: _try_all(lab, seed, few)))


def judged(found: Sequence[Tried]) -> Outcome:
    """Bad is a bug that no plan shows, unless a later pass is known to heal what it does."""
    missed = [tried for tried in found if not tried.caught and tried.bug not in HEALED]
    notes = [str(tried) for tried in found]
    notes += [f"{t.bug} is healed ({HEALED[t.bug]}), and was caught" for t in found if t.caught and t.bug in HEALED]
    return Outcome(len(found), "bugs", len(missed), tuple(notes))


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


@dataclass(frozen=True)
class Tried:
    """A planted bug under so many plans, and the results of those that show it."""

    bug: str
    plans: int
    caught: tuple[Result, ...]

    def __str__(self) -> str:
        missed = f"not caught, healed: {HEALED[self.bug]}" if self.bug in HEALED else "NOT CAUGHT"
        first = f"first {self.caught[0]}" if self.caught else missed
        return f"{self.bug} ({BUGS[self.bug].story}): {len(self.caught)} of {self.plans} plans; {first}"


async def try_bug(lab: Laboratory, name: str, seed: int, few: int, most: int) -> Tried:
    """`few` plans, and on to `most` until one shows it. One shows it that is bad with the bug and good without it just
    afterwards: a machine too busy for the one is too busy for the other."""
    bug, caught, plans = BUGS[name], list[Result](), 0
    while plans < few or (not caught and plans < most):
        drawn = Case.draw(seed + plans, bug.workloads[plans % len(bug.workloads)])
        case = Case(drawn.workload, drawn.faults, drawn.standby or bug.standby)
        plans += 1
        result = await lab.check(case, name)
        if result.wrong and not (await lab.check(case)).wrong:
            caught.append(result)
            _tell(f"{name}, plan {plans}: {result}")
    return Tried(name, plans, tuple(caught))


async def _try_all(lab: Laboratory, seed: int, few: int) -> list[Tried]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> Tried:
        async with places:
            tried = await try_bug(lab, name, seed, few, MOST_PLANS_PER_BUG)
        _tell(str(tried))
        return tried

    return await asyncio.gather(*map(one, BUGS))


def _tell(line: str) -> None:
    print(line, flush=True)
