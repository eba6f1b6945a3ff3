"""Cancelled streams, pools far below demand, requests that never fit, steps beyond the stall limit: reduced counts."""

from __future__ import annotations

import pytest
from helpers.failures import cancels, pools
from helpers.failures.outcome import Outcome

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]


def nothing_bad(outcome: Outcome) -> None:
    print(outcome)
    assert not outcome.bad, "\n".join(outcome.bad)


def test_cancelled_streams_leave_nothing_and_harm_nobody() -> None:
    nothing_bad(cancels.run(24, seed=3))


def test_a_pool_far_below_demand_preempts_and_changes_no_token() -> None:
    nothing_bad(pools.small_pools(20, seed=3, shares=(0.1,)))


def test_a_request_that_can_never_fit_is_refused_at_once_with_the_limit() -> None:
    nothing_bad(pools.never_fits(20, seed=3))


def test_a_step_far_longer_than_the_stall_limit_is_waited_for() -> None:
    nothing_bad(pools.slow_is_not_dead(step_seconds=2.5, stall_seconds=0.8, layers=4, busy_loops=0))
