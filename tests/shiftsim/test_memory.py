"""What a replay keeps does not grow with its trace."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest
from helpers.linear_executor import LinearExecutor
from shiftcore.policy import Policy
from shiftsim import measures
from shiftsim.engine import EngineOptions
from shiftsim.replay import as_json, replay
from shiftsim.trace import Arrival

OPTIONS = EngineOptions(max_num_seqs=16, max_batched_tokens=256, max_model_len=2048, policy=Policy(threshold_tokens=64))
SHORT, LONG = 500, 4000


def stream(requests: int) -> Iterator[Arrival]:
    """A steady load of prompts of many lengths; a few can never run."""
    for number in range(requests):
        yield Arrival(number * 0.05, 3000 if number % 100 == 99 else 20 + number * 37 % 200, 2 + number % 7)


def peak_bytes(requests: int) -> int:
    """While the replay runs and while it is told of, with all that it keeps."""
    gc.collect()
    tracemalloc.start()
    try:
        outcome = replay("any", LinearExecutor(kv_tokens=40_000), OPTIONS, 2, stream(requests))
        as_json(outcome)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert outcome.fleet.arrived == requests
        assert 0 < outcome.refused < outcome.finished
        assert outcome.keeps_up or outcome.drain_seconds < 5


def test_eight_times_the_trace_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million values of a distribution are kept as they are, 8 bytes each, and beyond it only their logarithms are
    counted; the test lets that begin at 200, so that both traces are beyond it."""
    monkeypatch.setattr(measures, "EXACT", 200)
    short, long = peak_bytes(SHORT), peak_bytes(LONG)
    assert long < 1.25 * short, f"{short} bytes for {SHORT} requests, {long} for {LONG}"
