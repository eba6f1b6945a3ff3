"""What happened when: bins that widen lose nothing, and runs of steps that are skipped fall into the same bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from helpers.linear_executor import SP2, TP2, LinearExecutor
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftsim.engine import EngineOptions
from shiftsim.measures import Distribution
from shiftsim.replay import replay
from shiftsim.series import Series
from shiftsim.trace import Arrival

OPTIONS = EngineOptions(max_num_seqs=8, max_batched_tokens=256, max_model_len=2048)


def test_a_run_is_spread_over_the_bins_that_it_spans() -> None:
    series = Series(bins=8, width_seconds=1.0)
    series.arrival(10.0)
    series.ran(TP2, 10.5, 13.5, tokens=300, output=30, waiting=2, kv=0.5)
    assert series.tokens == pytest.approx([50, 100, 100, 50, 0, 0, 0, 0])
    assert series.output == pytest.approx([5, 10, 10, 5, 0, 0, 0, 0])
    assert series.gears[TP2] == pytest.approx([0.5, 1, 1, 0.5, 0, 0, 0, 0])
    assert series.waiting == pytest.approx([1, 2, 2, 1, 0, 0, 0, 0])
    assert series.kv == pytest.approx([0.25, 0.5, 0.5, 0.25, 0, 0, 0, 0])


def test_bins_that_widen_lose_nothing() -> None:
    series = Series(bins=4, width_seconds=1.0)
    series.arrival(0.0)
    series.arrival(3.5)
    series.answered(3.5, 0.25)
    series.ran(TP2, 0.0, 4.0, 40, 4, 1, 1.0)
    series.ran(SP2, 6.0, 10.0, 80, 8, 0, 1.0)
    assert (series.width_seconds, len(series.tokens)) == (4.0, 4)
    assert series.arrived == [2, 0, 0, 0]
    assert series.tokens == pytest.approx([40, 40, 40, 0])
    assert series.gears[TP2] == pytest.approx([4, 0, 0, 0])
    assert series.gears[SP2] == pytest.approx([0, 2, 2, 0])
    assert series.ttft_percentiles(95, 1) == [pytest.approx(0.25, rel=0.01), None, None, None]


def test_memory_does_not_grow_with_the_trace() -> None:
    series = Series(bins=64)
    for day in range(1000):
        series.arrival(day * 86_400.0)
        series.answered(day * 86_400.0, 1.0)
        series.ran(TP2, day * 86_400.0, day * 86_400.0 + 5, 10, 1, 0, 0.1)
    assert {len(sums) for sums in (series.arrived, series.tokens, *series.gears.values())} == {64}
    assert sum(series.arrived) == 1000
    assert sum(series.tokens) == pytest.approx(10_000)


def test_percentiles_over_time_are_of_the_bins_around() -> None:
    series = Series(bins=8, width_seconds=1.0)
    for second, ttft in enumerate((1.0, 1.0, 1.0, 9.0, 1.0, 1.0)):
        series.arrival(float(second))
        series.answered(float(second), ttft)
    largest = series.ttft_percentiles(100, 3)
    assert [value and round(value) for value in largest] == [1, 1, 9, 9, 9, 1, 1, None]


@settings(max_examples=15, deadline=None)
@given(
    gaps=st.lists(
        st.tuples(st.sampled_from((0.0, 0.02, 0.3, 5.0)), st.integers(1, 600), st.integers(0, 200)),
        min_size=1, max_size=6,
    ),
    engines=st.integers(1, 2), kv_tokens=st.sampled_from((4096, 768)),
)  # fmt: skip
def test_skipped_steps_fall_into_the_same_bins(
    gaps: list[tuple[float, int, int]], engines: int, kv_tokens: int
) -> None:
    """To a token or two: within a run a later step takes a little longer than an earlier one."""
    now, arrivals = 0.0, []
    for gap, prompt, output in gaps:
        now += gap
        arrivals.append(Arrival(now, prompt, output))
    executor = LinearExecutor(kv_tokens)
    skipped, stepped = (
        replay("any", executor, replace(OPTIONS, skip=skip), engines, arrivals).measures.series
        for skip in (True, False)
    )
    assert (skipped.width_seconds, skipped.arrived) == (stepped.width_seconds, stepped.arrived)
    for name in ("tokens", "output", "waiting"):
        one, other = getattr(skipped, name), getattr(stepped, name)
        assert sum(one) == pytest.approx(sum(other), rel=1e-9, abs=1e-9), name
        assert apart(one, other, share=0.02) < 3, name
    assert sum(skipped.kv) == pytest.approx(sum(stepped.kv), rel=0.05, abs=0.05)
    for gear, busy in stepped.gears.items():
        assert apart(skipped.gears[gear], busy) < 1e-6


def apart(one: Sequence[float], other: Sequence[float], share: float = 0.0) -> float:
    """How far two bins are from each other beyond that share of them."""
    return max(abs(a - b) - share * max(a, b) for a, b in zip(one, other, strict=True))


def test_the_share_of_values_up_to_a_limit() -> None:
    exact, counted = Distribution(), Distribution(exact=10)
    for value in range(1, 101):
        exact.add(float(value))
        counted.add(float(value))
    assert exact.shares([0.5, 1.0, 50.5, 100.0]) == [0.0, 0.01, 0.5, 1.0]
    assert not counted.is_exact
    assert counted.shares([0.5, 50.5, 200.0]) == [0.0, pytest.approx(0.5, abs=0.011), 1.0]
    assert Distribution().shares([1.0]) == [0.0]
