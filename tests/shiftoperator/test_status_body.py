"""The status beside its conditions: what pods measured, how busy they are, how they failed, what of it is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shiftoperator import status
from shiftoperator.snapshot import Failure, GearState, Load, Phase
from shiftoperator.status import bands
from shiftoperator.status.measured import two_digits

from .conftest import Make

Object = dict[str, Any]
NOW, SOON, LATER = "2030-01-01T00:00:00Z", "2030-01-01T00:00:10Z", "2030-01-01T00:05:00Z"
OUTCOME = status.Outcome(2, "h", 1, status.Scaling(True, "Steady", "all well"))
PHASES = (Phase("ranks", 1.2, 0, True), Phase("load", 8.9, 500, True), Phase("calibrate", 4.0, 0, True))


def two_pods(make: Make, before: Object | None = None, **second: Any) -> Object:
    pods = (make.pod("p1", started_at=NOW), make.pod("p2", started_at=SOON))
    first = {"crossover_tokens": 100, "crossover_reason": "", "phases": PHASES, "dtype": "float32", "version": "0.1.0"}
    states = {"uid-p1": make.state(**first), "uid-p2": make.state(**{**first, **second})}
    return status.build(make.snapshot(make.resource(before), pods, states), OUTCOME, [], NOW)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0), (0.4, 0), (7.0, 7), (14.4, 14), (149.0, 150), (1049.0, 1000), (98_765.0, 99_000)]
)
def test_two_digits(value: float, expected: int) -> None:
    assert two_digits(value) == expected


def test_capacity_is_that_of_all_ready_pods(make: Make) -> None:
    built = two_pods(make, gears=(GearState("tp2", 1, 2, capacity_tokens_per_second=412.0), GearState("sp2", 2, 1)))
    assert built["capacity"] == [
        {"gear": "sp2", "tokensPerSecond": 1000, "pods": 1},
        {"gear": "tp2", "tokensPerSecond": 810, "pods": 2},
    ]


def test_crossover_says_where_it_comes_from(make: Make) -> None:
    assert two_pods(make, crossover_tokens=140)["crossover"] == {
        "tokens": 100,
        "source": "Calibration",
        "pod": "p1",
        "podStartedAt": NOW,
        "model": "pvc://models/sub/gemma.gguf",
        "dtype": "float32",
        "device": "cpu",
        "runtimeVersion": "0.1.0",
    }
    none = two_pods(make, crossover_tokens=0, crossover_reason="NotCalibrated", phases=PHASES[:1])["crossover"]
    assert (none["pod"], none["reason"], none["source"]) == ("p2", "NotCalibrated", "Default")
    assert "tokens" not in none


def test_the_slowest_start(make: Make) -> None:
    slow = (*PHASES[:2], Phase("calibrate", 60.6, 0, True))
    assert two_pods(make, phases=slow)["slowestStart"] == {
        "pod": "p2",
        "seconds": 71,
        "phases": [
            {"name": "ranks", "seconds": 1, "bytes": 0},
            {"name": "load", "seconds": 9, "bytes": 500},
            {"name": "calibrate", "seconds": 61, "bytes": 0},
        ],
    }


def test_a_starting_pod_shows_its_phase(make: Make) -> None:
    starting = make.pod(ready=False)
    state = make.state(ready=False, phases=(Phase("ranks", 1.0, 0, True), Phase("load", 3.0)))
    built = status.build(make.snapshot(pods=(starting,), states={starting.uid: state}), OUTCOME, [], NOW)
    assert built["pods"][0]["phase"] == "load"
    assert "load" not in built["pods"][0]


@pytest.mark.parametrize(
    ("case", "load", "before", "since", "expected"),
    [
        ("nothing runs", Load(), None, NOW, "idle"),
        ("a request", Load(running_requests=1), None, NOW, "low"),
        ("one ended within the minute", Load(tpot_seconds={95: 0.1}), None, NOW, "low"),
        ("six of sixteen", Load(running_requests=6), None, NOW, "medium"),
        ("ten of sixteen", Load(running_requests=10), None, NOW, "high"),
        ("all of sixteen", Load(running_requests=16), None, NOW, "full"),
        ("all, and more wait", Load(running_requests=16, waiting_requests=2), None, NOW, "full"),
        ("the cache is full", Load(running_requests=1, kv_blocks_total=100, kv_blocks_free=5), None, NOW, "full"),
        ("an idle pod's cache is free", Load(tpot_seconds={95: 0.1}, kv_blocks_total=100), None, NOW, "low"),
        ("throughput", Load(output_tokens_per_second=700.0), None, NOW, "high"),
        ("rises at once", Load(running_requests=16), "idle", NOW, "full"),
        ("does not fall at once", Load(), "full", NOW, "full"),
        ("falls by one", Load(), "full", LATER, "high"),
        ("not below the margin", Load(running_requests=9), "high", LATER, "high"),
        ("below the margin", Load(running_requests=7), "high", LATER, "medium"),
    ],
)
def test_load_bands(make: Make, case: str, load: Load, before: str | None, since: str, expected: str) -> None:
    known = {} if before is None else {"load": before, "loadSince": NOW}
    state = make.state(load=replace(load, max_running_requests=16))
    found = bands.load(state, known, since)
    assert found["load"] == expected, case
    assert found["loadSince"] == (since if expected != before else NOW)


def test_traffic_around_a_border_leaves_the_band(make: Make) -> None:
    known, written = {"load": "medium", "loadSince": NOW}, 0
    for minute in range(60):
        running = (9, 10)[minute % 2]
        state = make.state(load=Load(running_requests=running, max_running_requests=16))
        found = bands.load(state, known, f"2030-01-01T00:{minute:02}:00Z")
        written += found != known
        known = found
    assert written == 1


def test_the_settled_size_is_kept_until_the_next_is_reached(make: Make) -> None:
    one, two = make.pod("p1"), make.pod("p2", ready=False)
    told: Object = {}
    path = [(1, (one,)), (2, (one,)), (2, (one, two)), (2, (one, make.pod("p2"))), (1, (one,)), (0, ()), (1, (one,))]
    sizes, ready = [], []
    for wanted, pods in path:
        snapshot = make.snapshot(make.resource(told), pods)
        told = status.build(snapshot, replace(OUTCOME, desired_replicas=wanted), [], NOW)
        sizes.append(told["settledReplicas"])
        ready.append(told["conditions"][0]["reason"])
    assert sizes == [1, 1, 1, 2, 1, 0, 1]
    assert ready == [
        *("AllPodsReady", "ScalingOut", "ScalingOut", "AllPodsReady", "AllPodsReady", "ScaledToZero", "AllPodsReady"),
    ]
    starts = status.build(make.snapshot(make.resource({"settledReplicas": 0}), (two,)), OUTCOME, [], NOW)
    assert (starts["settledReplicas"], starts["conditions"][0]["reason"]) == (0, "PodsStarting")


def test_a_decision_of_an_earlier_version_is_cut_to_the_schema(make: Make) -> None:
    built = status.build(make.snapshot(), OUTCOME, [{"reason": "Idle", "message": "m" * 5000}], NOW)
    assert len(built["decisions"][0]["message"]) == 1024


def test_figures_are_of_ready_pods(make: Make) -> None:
    pods = (make.pod("p1"), make.pod("p2", ready=False), make.pod("p3", deleting=True))
    states = {pod.uid: make.state(load=Load(running_requests=2, ttft_seconds={95: 0.5})) for pod in pods}
    snapshot = make.snapshot(pods=pods, states=states)
    figures = status.figures(snapshot, status.build(snapshot, OUTCOME, [], NOW))
    assert figures["shift_operator_running_requests"] == {"": 2}
    assert figures["shift_operator_capacity_tokens_per_second"] == {"tp2": 400.0, "sp2": 1000.0}
    assert figures["shift_operator_ttft_p95_seconds"] == {"": 0.5}


def failed(pod: str, time: str, code: int = 1) -> Failure:
    return Failure(pod, "RankFailed", code, "rank 1 died", time)


def test_the_last_failure_outlives_the_return_of_its_pod(make: Make) -> None:
    snapshot = make.snapshot(pods=(make.pod(ended=failed("p1", NOW, 137)),), states={})
    built = status.build(snapshot, OUTCOME, [], NOW)
    assert (built["lastFailure"]["pod"], built["lastFailure"]["exitCode"]) == ("p1", 137)


def test_an_older_failure_does_not_replace_a_newer_one(make: Make) -> None:
    """It did when the pod of the newer one was gone."""
    newer = {"lastFailure": {"pod": "gone", "reason": "RankFailed", "exitCode": 1, "message": "m", "time": LATER}}
    snapshot = make.snapshot(make.resource(newer), pods=(make.pod(ended=failed("p1", NOW)),))
    assert status.build(snapshot, OUTCOME, [], LATER)["lastFailure"]["pod"] == "gone"


def test_a_field_that_is_gone_is_named_in_the_merge_patch(make: Make) -> None:
    """A merge patch keeps what it does not name: such a status was written again in every pass."""
    crossed, none = two_pods(make), two_pods(make, crossover_tokens=0, crossover_reason="NoCrossover")
    assert status.patch(crossed, none)["crossover"] == {"pod": "p2", "podStartedAt": SOON, "reason": "NoCrossover",
                                                        "tokens": None}  # fmt: skip
    empty = status.build(make.snapshot(), OUTCOME, [], NOW)
    written = status.patch(crossed, empty)
    assert (written["crossover"], written["slowestStart"]) == (None, None)
    known = {"lastFailure": {"pod": "p1", "time": NOW}}
    assert status.patch(known, {"lastFailure": {"pod": "p1"}}) == {"lastFailure": {"time": None}}
    assert status.patch({"policyGeneration": 4, "policy": {}, "lastFailure": {}}, {}) == {}


def heard(before: Object, type_: str, status_: str, reason: str) -> list[tuple[str, bool]]:
    after = {"conditions": [{"type": type_, "status": status_, "reason": reason, "message": ""}]}
    return [(t.reason, t.bad) for t in status.transitions(before, after)]


@pytest.mark.parametrize(
    ("type_", "before", "after", "expected"),
    [
        ("SLOMet", None, ("True", "TargetsMet"), []),
        ("SLOMet", None, ("False", "TtftMissed"), [("TtftMissed", True)]),
        ("SLOMet", ("True", "TargetsMet"), ("Unknown", "NoTraffic"), []),
        ("SLOMet", ("Unknown", "NoTraffic"), ("True", "TargetsMet"), []),
        ("SLOMet", ("Unknown", "NoTraffic"), ("False", "TpotMissed"), [("TpotMissed", True)]),
        ("SLOMet", ("False", "TtftMissed"), ("False", "TpotMissed"), []),
        ("SLOMet", ("False", "TtftMissed"), ("True", "TargetsMet"), [("TargetsMet", False)]),
        ("Degraded", None, ("True", "PodsFailing"), [("PodsFailing", True)]),
        ("Degraded", None, ("False", "AsAsked"), []),
        ("Degraded", ("Unknown", "NoPodReady"), ("False", "AsAsked"), []),
        ("Degraded", ("True", "PodsFailing"), ("True", "PodsBlocked"), [("PodsBlocked", True)]),
        ("Degraded", ("True", "PodsFailing"), ("False", "AsAsked"), [("AsAsked", False)]),
        ("ModelLoaded", ("True", "Loaded"), ("False", "Fetching"), []),
        ("Scheduled", ("True", "PodsScheduled"), ("False", "Unschedulable"), []),
        ("Paused", ("False", "NotSuspended"), ("True", "Suspending"), [("Suspending", False)]),
        ("Paused", ("True", "Suspending"), ("True", "Suspended"), []),
        ("Ready", ("True", "AllPodsReady"), ("True", "ScalingOut"), []),
        ("Ready", ("True", "AllPodsReady"), ("False", "Suspended"), [("Suspended", False)]),
        ("Ready", ("True", "AllPodsReady"), ("False", "RankFailed"), [("RankFailed", True)]),
    ],
)
def test_events(type_: str, before: tuple[str, str] | None, after: tuple[str, str], expected: Object) -> None:
    known = [] if before is None else [{"type": type_, "status": before[0], "reason": before[1], "message": ""}]
    assert heard({"conditions": known}, type_, *after) == expected
