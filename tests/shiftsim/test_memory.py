"""What a replay keeps does not grow with its trace."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest
from helpers.linear_executor import LinearExecutor
from shiftcore.policy import Policy
from shiftsim import measures
from shiftsim.describe import describe
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


def test_a_trace_is_described_without_keeping_its_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "EXACT", 200)

    def described_bytes(requests: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            describe(Arrival(i * 60.0, 20 + i % 200, 5) for i in range(requests))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    described_bytes(SHORT)  # what is imported and cached once
    short, long = described_bytes(SHORT), described_bytes(8 * SHORT)
    assert long < 1.25 * short, f"{short} bytes for {SHORT} requests, {long} for {8 * SHORT}"


def test_a_long_trace_is_described_within_half_a_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = [Arrival(i * 0.7, 20 + i * 37 % 900, 1 + i % 7) for i in range(1000)]
    exact = describe(arrivals)
    monkeypatch.setattr(measures, "EXACT", 200)
    counted = describe(arrivals)
    assert exact.prompt.total == sum(a.prompt_tokens for a in arrivals)
    assert exact.output.total == sum(a.output_tokens for a in arrivals)
    ordered = sorted(a.prompt_tokens for a in arrivals)
    assert exact.prompt.percentiles == (ordered[499], ordered[949], ordered[989], ordered[999])
    assert counted.prompt.percentiles == pytest.approx(exact.prompt.percentiles, rel=0.006)
    assert counted.prompt.percentiles[-1] == ordered[-1], "the largest is known"
    starts = (sum(a.prompt_tokens for a in arrivals if s <= a.seconds < s + 10) for s in range(0, 700, 10))
    assert counted.peak_prompt_tokens_per_second == exact.peak_prompt_tokens_per_second == max(starts) / 10
