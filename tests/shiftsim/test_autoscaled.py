"""The real autoscaler over simulated pods: what it orders, when that serves, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.linear_executor import SP2, TP2, LinearExecutor
from shiftcore.policy import Policy
from shiftcore.scaling import Limits
from shiftsim.autoscaled import ScaledFleet, Targets
from shiftsim.engine import EngineOptions
from shiftsim.errors import UserError
from shiftsim.replay import replay
from shiftsim.trace import Arrival

OPTIONS = EngineOptions(max_num_seqs=8, max_batched_tokens=2048, max_model_len=4096)
TARGETS = Targets(ttft_seconds=1.0, tpot_seconds=0.2)
START_SECONDS = 60.0


def steady(seconds: float, per_second: float, prompt: int, output: int, begin: float = 0.0) -> list[Arrival]:
    return [Arrival(begin + i / per_second, prompt, output) for i in range(round(seconds * per_second))]


def scaled(arrivals: list[Arrival], *, shift_first: bool = True, bounds: Limits | None = None) -> ScaledFleet:
    executor = LinearExecutor(kv_tokens=200_000)
    bounds = bounds or Limits(minimum=1, maximum=6)
    fleet = ScaledFleet(executor, OPTIONS, bounds, TARGETS, START_SECONDS, shift_first=shift_first)
    fleet.replay(arrivals)
    return fleet


def test_a_fleet_of_fixed_size_is_the_plain_replay() -> None:
    """The loop that looks at the pods every two seconds changes nothing that they compute."""
    arrivals = steady(60, 20, 300, 10)
    fleet = scaled(arrivals, bounds=Limits(minimum=2, maximum=2))
    plain = replay("any", LinearExecutor(kv_tokens=200_000), OPTIONS, 2, arrivals)
    for name in ("ttft", "tpot", "total", "queued"):
        ours, theirs = getattr(fleet.measures, name), getattr(plain.measures, name)
        assert sorted(ours._values) == sorted(theirs._values)
    assert fleet.pod_seconds == pytest.approx(2 * fleet.measures.last_end_seconds)
    assert fleet.gpu_hours == pytest.approx(2 * 2 * fleet.measures.last_end_seconds / 3600)
    assert fleet.attainment == 1.0
    assert not fleet.orders


def test_what_shifting_can_carry_orders_no_pod() -> None:
    """Above the tp gear's capacity of 9,900 tokens per second, far below the sequence gear's."""
    arrivals = steady(120, 30, 600, 3)
    shifting, blind = scaled(arrivals), scaled(arrivals, shift_first=False)
    assert shifting.orders == 0
    assert blind.orders >= 1
    assert shifting.gpu_hours < blind.gpu_hours / 1.5
    assert shifting.attainment == blind.attainment == 1.0
    assert blind.reasons["HighUtilisation"] >= 1


def test_a_pod_serves_when_it_has_started_and_leaves_when_it_is_empty() -> None:
    """Long answers fill a pod's slots; the second comes after its start, and goes once there is little to do."""
    busy, calm = steady(150, 4, 30, 500), steady(600, 0.2, 30, 10, begin=200)
    fleet = scaled([*busy, *calm], bounds=Limits(maximum=6, in_seconds=60))
    assert fleet.reasons["QueueTooOld"] + fleet.reasons["SlotsFull"] >= 1
    assert fleet.orders >= 1
    assert len(fleet.pods) < fleet.peak_pods, "those that were ordered have left"
    assert fleet.measures.total.count == fleet.arrived == len(busy) + len(calm)
    assert fleet.measures.queued.largest > START_SECONDS / 2, "nobody could begin on a pod that still starts"
    assert 0 < fleet.attainment < 1
    assert fleet.pod_seconds < fleet.peak_pods * fleet.measures.last_end_seconds


def test_pods_that_serve_run_the_throughput_gear_while_others_start() -> None:
    arrivals = steady(90, 4, 30, 500)
    executor = LinearExecutor(kv_tokens=200_000)
    options = replace(OPTIONS, policy=Policy(threshold_tokens=2048))
    fleet = ScaledFleet(executor, options, Limits(maximum=4), TARGETS, 1000.0, shift_first=True)
    fleet.replay(arrivals)
    assert fleet.orders >= 1
    used = fleet.pods[0].engine.use
    assert used[SP2].steps > used[TP2].steps > 0, "its own threshold would run all steps in the tp gear"


def test_the_same_trace_gives_the_same_fleet() -> None:
    arrivals = steady(90, 4, 30, 500)
    first, second = scaled(arrivals), scaled(arrivals)
    assert first.pod_seconds == second.pod_seconds
    assert first.measures.ttft._values == second.measures.ttft._values


def test_a_fleet_of_none_is_refused() -> None:
    with pytest.raises(UserError, match="--min-replicas 0"):
        scaled([], bounds=Limits(minimum=0))
