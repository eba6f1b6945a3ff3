"""What takes minutes of waiting. It runs beside the tests before these (conftest.py), which look at what came of it."""

from __future__ import annotations

import pytest
from helpers.long_waits import OUTAGE_SECONDS, OUTAGES, REST_SECONDS, LongWaits

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("plane")]  # what that needs is there, or it is skipped

RECOVERY_SECONDS = 30.0
# At a Lease of 15 s.
_RENEWAL_SECONDS = 3.0


@pytest.mark.parametrize("how", OUTAGES)
def test_an_api_server_that_was_away_for_a_minute(long_waits: LongWaits, how: str) -> None:
    recovery = long_waits.outages()[how]
    print(f"API server {how} for {OUTAGE_SECONDS:g} s: all was done {recovery.seconds:.1f} s after its return")
    assert recovery.stood_by, "a leader that cannot renew must not act"
    assert recovery.seconds <= RECOVERY_SECONDS
    assert recovery.generations[1] > recovery.generations[0]


def test_nothing_is_written_at_rest(long_waits: LongWaits) -> None:
    rest = long_waits.rest()
    print(f"{REST_SECONDS:g} s at rest: {rest.renewals} renewals of the Lease, other writes: {rest.writes}")
    assert rest.writes == {}
    # A busy machine renews later; one that did not lead for a while would be at rest for that reason.
    assert rest.renewals >= 0.7 * REST_SECONDS / _RENEWAL_SECONDS
