"""Many plans beside each other on one control plane."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.api_faults.case import Case
from helpers.api_faults.check import Laboratory, Result
from helpers.api_faults.workloads import WORKLOADS
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import HOW_TO_BUILD, control_plane, find_binary

AT_ONCE = 3
SHRINK_TRIES = 12
_MOST_FAILURES = 5
# What a plan should take on an idle machine.
LONG_SECONDS = 15.0


def cases(seed: int) -> Iterator[Case]:
    """Endless; every workload in turn."""
    number = seed
    while True:
        for workload in WORKLOADS:
            yield Case.draw(number, workload)
            number += 1


@dataclass
class Summary:
    results: list[Result] = field(default_factory=list)
    failures: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        struck: Counter[str] = sum((result.struck for result in self.results), Counter())
        took = sorted(result.seconds for result in self.results) or [0.0]
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(struck.items()))
        long = sum(seconds > LONG_SECONDS for seconds in took)
        return (
            f"{len(self.results)} plans over {len({r.case.workload for r in self.results})} workloads, "
            f"{sum(struck.values())} strikes ({kinds}); {len(self.failures)} bad; "
            f"a plan took {took[len(took) // 2]:.1f} s in the middle and {took[-1]:.1f} s at most, "
            f"{long} more than {LONG_SECONDS:g} s; {self.seconds:.0f} s in all"
        )


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    kube = find_binary()
    if kube is None:
        raise FileNotFoundError(HOW_TO_BUILD)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with control_plane(kube, folder / "control-plane") as plane, Kubelet(plane) as kubelet:
            yield Laboratory(plane, kubelet, folder)


async def run_all(
    laboratory: Laboratory, plans: Iterable[Case], at_once: int = AT_ONCE, tell: Callable[[str], None] = print
) -> Summary:
    """Failures are told as they come, then made smaller. A few of them end the run."""
    summary, began, queue = Summary(), time.monotonic(), iter(plans)

    async def work() -> None:
        for case in queue:
            if len(summary.failures) >= _MOST_FAILURES:
                return
            result = await laboratory.check(case)
            summary.results.append(result)
            tell(f"{len(summary.results)}: {result if result.wrong else result.line}")
            if result.wrong:
                tell(f"{result.log}\n{result}\n  {replay_command(case)}")
                summary.failures.append(await shrink(laboratory, result, tell))

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    # A run without faults that ends otherwise than another is a failure too.
    summary.failures += laboratory.odd
    summary.seconds = time.monotonic() - began
    return summary


async def shrink(laboratory: Laboratory, failure: Result, tell: Callable[[str], None]) -> Result:
    """Greedy: the first smaller plan that fails too, whatever its failure is, and on from there."""
    tries = 0
    while True:
        for case in failure.case.smaller():
            if tries >= SHRINK_TRIES:
                return failure
            tries += 1
            result = await laboratory.check(case)
            if result.wrong:
                tell(f"smaller: {result}")
                failure = result
                break
        else:
            return failure


def replay_command(case: Case) -> str:
    return f"python tests/campaign.py --replay '{case}'"


def take(seed: int, number: int) -> list[Case]:
    return list(islice(cases(seed), number))
