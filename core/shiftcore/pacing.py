"""The token budget of the next step when readers have a target for their time per output token."""

from __future__ import annotations

from shiftcore.gears import GearTable
from shiftcore.pace import Mix, pace
from shiftcore.policy import Policy
from shiftcore.scheduler import Scheduler


def step_budget(
    scheduler: Scheduler, table: GearTable, policy: Policy, target_seconds: float | None, block_size: int
) -> int | None:
    """Tokens that the next step may have; None: no bound but the limits, because nobody would wait for it."""
    if target_seconds is None:
        return None
    decoding = [request for request in scheduler.running if request.missing == 1]
    if not decoding:
        return None
    prefilling = [request.scheduled for request in scheduler.running if request.missing > 1]
    mix = Mix(len(decoding), sum(request.scheduled for request in decoding), max(prefilling, default=0))
    limit = scheduler.limits.max_batched_tokens
    found = pace(mix, table, policy, target_seconds=target_seconds, max_tokens=limit, min_prefill=block_size)
    return None if found is None else found.tokens
