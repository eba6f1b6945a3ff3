"""A served pod under signals and under ten times its load; reduced counts."""

from __future__ import annotations

import pytest
from helpers.failures import drains, overload

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


def test_sigterm_completes_what_runs_and_leaves_nothing() -> None:
    outcome = drains.run(2, seed=5)  # test_serve.py has a busy one
    print(outcome)
    assert not outcome.bad, "\n".join(outcome.bad)


def test_ten_times_the_load_is_refused_fast_and_harms_nobody() -> None:
    outcome = overload.run(seconds=10.0)
    print(outcome)
    assert not outcome.bad, "\n".join(outcome.bad)
