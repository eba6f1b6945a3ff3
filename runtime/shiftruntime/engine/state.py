"""What the engine tells of itself: the answer to a control call and the source of every metric."""

from __future__ import annotations

import time

from shiftcore.gears import GearTable, budget_note, threshold_in_use
from shiftcore.layout import Gear
from shiftcore.policy import Policy
from shiftcore.scheduler import Scheduler

from shiftruntime.engine.messages import EngineState, GearState, LoadState, SelfCheckState
from shiftruntime.engine.tally import Tally


def engine_state(
    table: GearTable, policy: Policy, scheduler: Scheduler, tally: Tally,
    *, generation_applied: int, self_check: SelfCheckState, draining: bool,
) -> EngineState:  # fmt: skip
    """``generation_applied``: of the policy that the ranks have seen; negative before they have seen any."""
    crossover = table.crossover
    note = budget_note(table, scheduler.limits.max_batched_tokens)
    threshold, source = threshold_in_use(table, policy)
    return EngineState(
        policy=policy,
        generation_applied=max(0, generation_applied),
        gears=tuple(_gear_state(gear, table, tally) for gear in table.gears),
        base_gear=table.base.name,
        crossover_tokens=crossover.tokens,
        crossover_reason=crossover.reason,
        crossover_message="; ".join(filter(None, (crossover.message, note))),
        threshold_tokens=threshold,
        threshold_source=source,
        shifts=tally.shifts,
        load=_load_state(scheduler, tally),
        self_check=self_check,
        draining=draining,
    )


def _gear_state(gear: Gear, table: GearTable, tally: Tally) -> GearState:
    curve = table.costs.get(gear)
    return GearState(
        name=gear.name,
        sequence=gear.sequence,
        tensor=gear.tensor,
        costs=curve.points if curve else (),
        steps=tally.steps[gear],
        tokens=tally.tokens[gear],
        busy_seconds=tally.busy_seconds[gear],
        capacity_tokens_per_second=curve.capacity_tokens_per_second() if curve else 0.0,
        step_counts=tuple(tally.step_counts[gear]),
    )


def _load_state(scheduler: Scheduler, tally: Tally) -> LoadState:
    now, w = time.monotonic(), tally.windows
    ttft, tpot = (window.percentiles(now, 50, 90, 95, 99) for window in (w.ttft_seconds, w.tpot_seconds))
    return LoadState(
        running_requests=len(scheduler.running),
        waiting_requests=len(scheduler.waiting),
        waiting_tokens=scheduler.waiting_tokens,
        kv_blocks_total=scheduler.pool.num_blocks,
        kv_blocks_free=scheduler.pool.num_available,
        oldest_wait_seconds=scheduler.oldest_wait(now),
        tokens_per_second=w.step_tokens.rate(now),
        busy_fraction=min(1.0, w.busy_seconds.rate(now)),
        max_running_requests=scheduler.limits.max_num_seqs,
        ttft_p50_seconds=ttft[0],
        ttft_p90_seconds=ttft[1],
        ttft_p95_seconds=ttft[2],
        ttft_p99_seconds=ttft[3],
        tpot_p50_seconds=tpot[0],
        tpot_p90_seconds=tpot[1],
        tpot_p95_seconds=tpot[2],
        tpot_p99_seconds=tpot[3],
        prompt_tokens_per_second=w.prompt_tokens.rate(now),
        output_tokens_per_second=w.output_tokens.rate(now),
        kv_blocks_cached=scheduler.pool.num_cached,
        prefix_queried_tokens=scheduler.counts.queried_tokens,
        prefix_hit_tokens=scheduler.counts.hit_tokens,
        preemptions=scheduler.counts.preemptions,
    )
