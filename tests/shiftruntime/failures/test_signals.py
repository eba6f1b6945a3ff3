"""A few of the campaign's strikes: both signals, at start-up and while serving."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from helpers.failures import signals
from helpers.failures.signals import Case

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

CASES = [
    Case(signal.SIGSTOP, "ranks", 2, 1),
    Case(signal.SIGSTOP, "kv", 2, 0),
    Case(signal.SIGKILL, "warm", 3, 2),
    Case(signal.SIGSTOP, "idle", 2, 1),
    Case(signal.SIGKILL, "prefill", 2, 0),
    Case(signal.SIGSTOP, "collective", 2, 0),
    Case(signal.SIGKILL, "between steps", 2, 1),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signals.model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_struck_rank_is_named_in_time_and_nothing_is_left(model: Path, case: Case) -> None:
    outcome = await signals.run_cases(model, [case])
    print(outcome)
    assert not outcome.bad, "\n".join(outcome.bad)


def test_the_campaign_strikes_every_rank_count_and_point() -> None:
    chosen = signals.cases(72, seed=1)
    assert {(case.signal, case.point) for case in chosen} == {
        (number, point)
        for number in (signal.SIGKILL, signal.SIGSTOP)
        for point in signals.START_POINTS + signals.SERVING_POINTS
    }
    assert {case.ranks for case in chosen} == {1, 2, 3, 4, 6, 8}
