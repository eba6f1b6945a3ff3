"""Prompts are cut while others read, and only then."""

from __future__ import annotations

import pytest
from shiftcore.blocks import BlockPool
from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftcore.pacing import step_budget
from shiftcore.policy import Policy
from shiftcore.scheduler import Limits, Request, Scheduler

BLOCK_SIZE = 4
TARGET_SECONDS = 0.02
# One millisecond per token in the tp gear, half of it in the other, which has 10 ms more to begin with.
TABLE = GearTable(
    Gear(2, 1),
    {
        Gear(1, 2): CostCurve((CostPoint(1, 0.001, 0.0, 3), CostPoint(64, 0.064, 0.0, 3))),
        Gear(2, 1): CostCurve((CostPoint(1, 0.0105, 0.0, 3), CostPoint(64, 0.042, 0.0, 3))),
    },
)


def budget(scheduler: Scheduler, table: GearTable = TABLE, target: float | None = TARGET_SECONDS) -> int | None:
    return step_budget(scheduler, table, Policy(), target, BLOCK_SIZE)


@pytest.fixture
def scheduler() -> Scheduler:
    limits = Limits(max_num_seqs=8, max_batched_tokens=64, max_model_len=256, max_waiting_requests=8)
    return Scheduler(limits, BlockPool(256, BLOCK_SIZE))


def run_step(scheduler: Scheduler) -> dict[str, int]:
    """Tokens of each request in the next step."""
    batch = scheduler.schedule(budget=budget(scheduler))
    scheduler.complete({chunk.request.id: 7 for chunk in batch if chunk.samples})
    return {chunk.request.id: chunk.length for chunk in batch}


def test_a_prompt_is_cut_while_somebody_reads(scheduler: Scheduler) -> None:
    scheduler.add(Request("reader", (1,) * 64, max_tokens=8))
    assert run_step(scheduler) == {"reader": 64}, "nobody reads yet, so nobody waits"
    scheduler.add(Request("late", (2,) * 64, max_tokens=8))
    step = run_step(scheduler)
    assert step == {"reader": 1, "late": 19}, "20 tokens take the 20 ms of the target"
    assert run_step(scheduler) == {"reader": 1, "late": 19}


def test_without_a_target_or_costs_the_limits_hold(scheduler: Scheduler) -> None:
    scheduler.add(Request("reader", (1,) * 8, max_tokens=8))
    run_step(scheduler)
    assert budget(scheduler) == 20
    assert budget(scheduler, target=None) is None
    assert budget(scheduler, table=GearTable(Gear(2, 1), {})) is None


def test_a_target_that_cannot_be_held_starves_no_prompt(scheduler: Scheduler) -> None:
    scheduler.add(Request("reader", (1,) * 8, max_tokens=8))
    run_step(scheduler)
    assert budget(scheduler, target=1e-6) == 1 + BLOCK_SIZE
