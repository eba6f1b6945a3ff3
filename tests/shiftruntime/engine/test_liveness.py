"""Who holds up a group: decisions as tables, and what the kernel says about real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftruntime.engine.liveness import Standstill, describe_state, holding_up, life_of, process_state, run_nanoseconds

LIMIT = 10.0


@pytest.mark.parametrize(
    ("still", "positions", "guilty"),
    [
        ({}, [], None),
        ({0: 11.0}, [(0, 0)], 0),
        ({0: 9.0}, [(0, 0)], None),
        ({0: 30.0, 1: 11.0}, [(5, 4), (4, 4)], 1),  # 0 has begun the collective that 1 has not reached
        ({0: 30.0, 1: 2.0}, [(5, 4), (4, 4)], None),  # 1 is slow and lives; 0 waits for it
        ({0: 11.0, 1: 30.0}, [(5, 5), (5, 4)], 1),  # 1 has begun, and not published its part
        ({1: 30.0}, [(3, 3), (9, 9)], 1),  # 0 is done with the step
        ({0: 11.0, 1: 0.0}, [(4, 4), (4, 4)], 0),  # neither waits: 1 computes, and 0 never will
        ({0: 30.0, 1: 2.0}, None, None),  # without positions 0 may be waiting for 1
        ({0: 11.0, 1: 30.0}, None, 1),
    ],
)
def test_the_rank_that_holds_up_the_others(
    still: dict[int, float], positions: list[tuple[int, int]] | None, guilty: int | None
) -> None:
    assert holding_up(still, LIMIT, positions) == guilty


def test_the_position_in_the_step_decides_who_is_behind_and_not_the_layers_counted_since_the_start() -> None:
    """Rank 1 has counted fewer layers in its life and waits in collective 5 for rank 0, which stopped before it."""
    ticks = (1000, 400)
    positions = [(4, 4), (5, 4)]
    assert min(range(2), key=lambda rank: (ticks[rank], *positions[rank])) == 1, "what was blamed before"
    assert holding_up({0: 12.0, 1: 12.0}, LIMIT, positions) == 0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
def test_nobody_is_blamed_for_waiting(ranks: list[tuple[float, int, bool]]) -> None:
    """Brute force: a rank is guilty only if it is over the limit and no unfinished rank is behind it."""
    positions = [(begun, begun - inside) for _, begun, inside in ranks]
    still = {rank: seconds for rank, (seconds, _, _) in enumerate(ranks)}
    guilty = holding_up(still, LIMIT, positions)
    over = {r for r in still if still[r] > LIMIT and all(positions[r] <= positions[other] for other in still)}
    assert (guilty in over) if over else (guilty is None)


def test_time_in_which_the_watcher_was_held_up_does_not_count() -> None:
    watch = Standstill(lambda _: (7,), [0], now=100.0, max_gap_seconds=2.0)
    assert watch.update(101.0)[0] == 1.0
    assert watch.update(200.0)[0] == 3.0


def test_any_change_is_life() -> None:
    lives = iter([(1,), (1,), (2,), (2,)])
    watch = Standstill(lambda _: next(lives), [3], now=0.0, max_gap_seconds=2.0)
    assert [watch.update(float(now))[3] for now in (1, 2, 3)] == [1.0, 0.0, 1.0]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Looks around twice a second, as the engine does."""
    code = "import time\nprint(flush=True)\nwhile True: time.sleep(0.05)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait(10)
    process.stdout.close()


def test_a_process_that_only_looks_around_lives_and_a_stopped_one_does_not(child: subprocess.Popen[bytes]) -> None:
    before = life_of(child.pid)
    deadline = time.monotonic() + 5.0
    while life_of(child.pid) == before:
        assert time.monotonic() < deadline, "no life seen in a process that wakes 20 times a second"
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGSTOP)
    while process_state(child.pid) != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped = life_of(child.pid)
    time.sleep(0.3)
    assert life_of(child.pid) == stopped
    assert describe_state(child.pid) == " (its process is stopped)"


def test_a_process_that_is_gone_shows_no_life() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)
    assert life_of(process.pid) == (0, 0, 0)
    assert process_state(process.pid) == "X"
    assert run_nanoseconds(process.pid) is None
