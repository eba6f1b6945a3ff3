"""Shares of tenants: what one had counts, what one missed while away does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftcore.fairness import _MAX_IDLE_TENANTS, TenantShares


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), max_size=200))
def test_tenants_that_always_wait_are_never_further_apart_than_one_request(requests: list[tuple[str, int]]) -> None:
    """Each tenant always has another request; the sizes are arbitrary."""
    shares = TenantShares()
    for tenant in "abc":
        shares.enter(tenant)
    for _, tokens in requests:
        chosen = min("abc", key=shares.served)
        shares.enter(chosen)
        shares.leave(chosen)
        shares.charge(chosen, tokens)
        served = [shares.served(tenant) for tenant in "abc"]
        assert max(served) - min(served) <= 100


def test_a_newcomer_starts_with_the_least_served_that_wait() -> None:
    shares = TenantShares()
    for tenant, tokens in (("a", 50), ("b", 80)):
        shares.enter(tenant)
        shares.charge(tenant, tokens)
    shares.enter("new")
    assert shares.served("new") == 50


def test_leaving_for_a_moment_forgets_no_debt() -> None:
    shares = TenantShares()
    shares.enter("light")
    shares.enter("heavy")
    shares.charge("heavy", 1000)
    shares.leave("heavy")
    shares.enter("heavy")
    assert (shares.served("light"), shares.served("heavy")) == (0, 1000)


def test_alone_after_others_one_starts_where_the_last_left() -> None:
    shares = TenantShares()
    shares.enter("a")
    shares.charge("a", 70)
    shares.leave("a")
    shares.enter("b")
    assert shares.served("b") == 70
    with pytest.raises(AssertionError, match="1 tenants wait"):
        shares.reset()


def test_names_of_clients_do_not_fill_the_memory() -> None:
    shares = TenantShares()
    shares.enter("waits")
    for i in range(_MAX_IDLE_TENANTS + 50):
        shares.enter(f"tenant-{i}")
        shares.charge(f"tenant-{i}", i)
        shares.leave(f"tenant-{i}")
    assert len(shares._served) <= _MAX_IDLE_TENANTS + 1
    assert shares.served(f"tenant-{_MAX_IDLE_TENANTS + 49}") >= _MAX_IDLE_TENANTS, "the largest debts are remembered"
