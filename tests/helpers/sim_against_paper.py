"""Campaign: the simulator's predictions against the published figures, with all requests, and how fast it is.

Every cell within its goal; the two windows of 15 minutes, in every layout, within so many seconds of one core.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.campaign_outcome import Outcome
from shiftsim import hardware, layouts, models, paper
from shiftsim.executor.fitted import published_fit
from shiftsim.planning import Modelled, Settings
from shiftsim.replay import replay
from shiftsim.trace import read

FITTED_GOAL = 0.0005  # relative, of a figure that was fitted
FEWER_REQUESTS_COST = 0.10  # of throughput, at a reduced scale: the last requests run alone
_TRACES = Path(__file__).parents[2] / "benchmarks" / "traces"


@dataclass(frozen=True)
class Window:
    """A trace with the settings that docs/SIMULATOR.md has it with, and the seconds that a layout may take."""

    trace: str
    model: str
    kv: str
    goal_seconds: float


WINDOWS = (
    Window("azure2023_code_15min.csv.gz", "llama-3.3-70b-fp8", "auto", 10.0),
    Window("mooncake_conversation_15min.csv.gz", "qwen3-32b-fp8", "fp8", 60.0),
)
SETTINGS = Settings(max_batched_tokens=131_072, max_model_len=131_072, copies=True, overlap=False)


def simulator_paper(seed: int, scale: float) -> Outcome:
    """Bad: a cell off its goal, or a layout that takes too long. The seed chooses nothing: nothing here is random."""
    cells, speeds = list(_cells(max(64, round(paper.REQUESTS * scale)))), list(_speeds())
    notes = tuple(f"{'' if good else 'BAD '}{line}" for good, line in cells + speeds)
    return Outcome(len(notes), "cells and layouts", sum(not good for good, _ in cells + speeds), notes)


def _cells(requests: int) -> Iterator[tuple[bool, str]]:
    predicted = paper.predict(paper.Assumptions(hardware.software(), published_fit()), requests)
    for cell in paper.CELLS:
        found, published = predicted[cell.name], cell.published
        goal = FITTED_GOAL if cell.fits else cell.goal
        if requests < paper.REQUESTS and cell.metric == "throughput":
            goal += FEWER_REQUESTS_COST
        error = found / published - 1
        yield abs(error) <= goal, f"{cell.name}: {found:.6g}, published {published:g}, {error:+.2%} (goal {goal:.2%})"


def _speeds() -> Iterator[tuple[bool, str]]:
    """In seconds of this process's core, so that others beside it do not count."""
    for window in WINDOWS:
        pods = Modelled(models.load(window.model, kv=window.kv), hardware.parse(paper.HARDWARE), SETTINGS)
        for name in layouts.NAMES:
            layout, started = layouts.parse(name, pods.ranks), time.process_time()
            outcome = replay(name, *pods.engine(layout), layout.engines, read(_TRACES / window.trace))
            took, arrived = time.process_time() - started, outcome.fleet.arrived
            line = f"{window.trace} in {name}: {took:.1f} s for {arrived} requests (goal {window.goal_seconds:g} s)"
            yield took <= window.goal_seconds and outcome.finished == arrived > 0, line
