"""What takes minutes of waiting. It runs beside the tests before these (conftest.py), which look at what came of it."""

from __future__ import annotations

import pytest
from helpers.long_waits import OUTAGE_SECONDS, OUTAGES, REST_SECONDS, Found, LongWaits

pytestmark = pytest.mark.timeout(900)

RECOVERY_SECONDS = 30.0
_LEASE_SECONDS = 15.0


@pytest.fixture(scope="module")
def found(plane: object, long_waits: LongWaits) -> Found:
    """`plane`: what it needs is there, or this is skipped."""
    return long_waits.found()


@pytest.mark.parametrize("how", OUTAGES)
def test_an_api_server_that_was_away_for_a_minute(found: Found, how: str) -> None:
    recovery = found.outages[how]
    print(f"API server {how} for {OUTAGE_SECONDS:g} s: all was done {recovery.seconds:.1f} s after its return")
    assert recovery.stood_by, "a leader that cannot renew must not act"
    assert recovery.seconds <= RECOVERY_SECONDS
    assert recovery.generations[1] > recovery.generations[0]


def test_nothing_is_written_at_rest(found: Found) -> None:
    print(f"{REST_SECONDS:g} s at rest: {found.renewals} renewals of the Lease, other writes: {found.writes}")
    assert found.writes == {}
    assert found.renewals >= REST_SECONDS / _LEASE_SECONDS, "the operator led all the time"
