"""Collectives in shared memory, over gloo and by the plain formula give the same bits; a lost peer ends the wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.comm_ranks import (
    absent_peer_gloo,
    absent_peer_shared_memory,
    both_programmes,
    both_ragged,
    programme,
    ragged_programme,
    run_in_processes,
    run_ragged,
    told_to_stop,
)
from helpers.local_comm import run_ranks

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_collective_gives_the_bits_of_the_formula(size: int, tmp_path: Path) -> None:
    results = run_in_processes(both_programmes, size, tmp_path)
    cases = programme(size)
    for rank, (shared, gloo) in enumerate(results):
        assert len(shared) == len(cases)
        assert shared == gloo, f"rank {rank}"
    for i, case in enumerate(cases):
        if case.verb == "all_to_all":
            continue
        for rank in range(size):
            for member in case.group(rank):
                assert results[member][0][i] == results[rank][0][i], f"{case}: ranks {member} and {rank} differ"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rows_of_unequal_number_reach_the_ranks_they_are_for(size: int, tmp_path: Path) -> None:
    cases = len(ragged_programme(size))
    assert run_in_processes(both_ragged, size, tmp_path) == [(cases, cases)] * size


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_rows_of_unequal_number_between_threads(size: int) -> None:
    cases = len(ragged_programme(size))
    assert run_ranks(size, run_ragged) == [cases] * size


def test_shared_memory_names_a_peer_that_does_not_come(tmp_path: Path) -> None:
    message, seconds = run_in_processes(absent_peer_shared_memory, 3, tmp_path, timeout_seconds=5.0)[0]
    assert "rank 1 did not reach collective 2 within 5 s" in message
    assert 5.0 <= seconds < 10.0


def test_gloo_ends_the_wait_for_a_peer_that_does_not_come(tmp_path: Path) -> None:
    message, seconds = run_in_processes(absent_peer_gloo, 2, tmp_path, timeout_seconds=5.0)[0]
    assert "rank 0" in message
    assert "all_gather" in message
    assert seconds < 10.0


def test_a_group_that_is_told_to_stop_ends_at_once(tmp_path: Path) -> None:
    message, seconds = run_in_processes(told_to_stop, 2, tmp_path)[0]
    assert "rank 0 was told to stop while it waited for rank 1" in message
    assert seconds < 10.0
