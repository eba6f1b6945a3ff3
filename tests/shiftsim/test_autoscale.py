"""The autoscaler in the loop of simulated pods."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.linear_executor import SP2, TP2, LinearExecutor
from rich.console import Console
from shiftcore.policy import Policy
from shiftcore.scaling import Action, Decision, Limits, Reason
from shiftsim import __main__ as command
from shiftsim.autoscale import ScaledFleet, Service
from shiftsim.autoscale_command import runs
from shiftsim.autoscale_page import as_json, mean_holding, meets, notes, orders, table
from shiftsim.engine import EngineOptions
from shiftsim.generation import Generation
from shiftsim.pods import Pod, Start
from shiftsim.slo import Attainment, Slo
from shiftsim.trace import Arrival

OPTIONS = EngineOptions(max_num_seqs=32, max_batched_tokens=256, max_model_len=2048)
SLO = Slo(1.0, 0.2)
START = Start(2.0, 10.0, 3.0)
# A step of 256 tokens takes 50 ms: a pod does about 5,000 tokens per second.
COSTS = {TP2: (0.02, 0.0004), SP2: (0.05, 0.000001)}


def service(most: int = 4, **limits: Any) -> Service:
    asked = {"out_seconds": 6.0, "in_seconds": 20.0, **limits}
    return Service(Limits(maximum=most, ttft_seconds=1.0, tpot_seconds=0.2, gpus_per_pod=2, **asked), SLO, START)


def burst(seconds: float, rate: float, start: float = 0.0, prompt: int = 200, output: int = 20) -> list[Arrival]:
    return [Arrival(start + i / rate, prompt, output) for i in range(round(seconds * rate))]


def scaled(arrivals: list[Arrival], asked: Service, executor: LinearExecutor | None = None) -> ScaledFleet:
    fleet = ScaledFleet(executor or LinearExecutor(kv_tokens=40_000, costs=COSTS), OPTIONS, asked)
    fleet.replay(arrivals)
    return fleet


def test_a_burst_orders_pods_that_serve_after_their_start_and_leave_after_it() -> None:
    arrivals = burst(40, 36) + burst(200, 0.5, start=40)
    fleet = scaled(arrivals, service())
    assert fleet.measures.total.count == fleet.arrived == len(arrivals)
    out = next(event for event in fleet.events if event.target > event.source)
    served = next(size for size in fleet.sizes if size.serving > 1)
    assert served.seconds - out.seconds == pytest.approx(START.total_seconds, abs=fleet.service.poll_seconds)
    holding = next(size for size in fleet.sizes if size.holding > 1)
    assert holding.seconds - out.seconds == pytest.approx(START.schedule_seconds, abs=fleet.service.poll_seconds)
    assert fleet.sizes[-1].asked == 1
    assert max(size.asked for size in fleet.sizes) <= 4


def test_a_calm_service_keeps_its_one_pod_and_pays_for_it_alone() -> None:
    fleet = scaled(burst(60, 1), service())
    assert (fleet.events, [size.asked for size in fleet.sizes]) == ([], [1])
    assert fleet.attainment == 1.0
    assert meets(fleet)
    assert fleet.gpu_seconds == pytest.approx(2 * fleet.measures.last_end_seconds)
    assert mean_holding(fleet) == pytest.approx(1.0)


def test_pods_never_exceed_the_maximum_and_who_waits_too_long_misses() -> None:
    fleet = scaled(burst(12, 60), service(most=2))
    assert max(size.asked for size in fleet.sizes) == 2
    assert fleet.attainment < 0.5
    assert not meets(fleet)


def test_a_pod_that_drains_too_long_is_cut_off_and_its_requests_miss() -> None:
    """Two long requests on two pods; one pod leaves, and its request with it."""
    executor = LinearExecutor(kv_tokens=100_000)
    options = replace(OPTIONS, max_model_len=100_000)
    limits = Limits(maximum=2, minimum=1, in_seconds=4.0, gpus_per_pod=2)
    fleet = ScaledFleet(executor, options, Service(limits, Slo(10.0, 10.0), START, drain_seconds=6.0))
    fleet._replicas = 2
    fleet._order(-START.total_seconds)
    fleet.replay([Arrival(0.0, 10, 6000), Arrival(0.1, 10, 6000)])
    assert (fleet.cut_off, fleet.measures.total.count) == (1, 1)
    assert fleet.attainment == 0.5
    assert [(event.source, event.target) for event in fleet.events] == [(2, 1)]
    assert fleet.gpu_seconds < 2 * 1.5 * fleet.measures.last_end_seconds


def ready_fleet(pods: int, limits: Limits, **more: Any) -> ScaledFleet:
    """All of them serve from the first moment on."""
    executor = LinearExecutor(kv_tokens=100_000, costs=COSTS)
    fleet = ScaledFleet(executor, replace(OPTIONS, max_model_len=100_000), Service(limits, SLO, START, **more))
    fleet._replicas = pods
    fleet._order(-START.total_seconds)
    return fleet


@pytest.mark.parametrize("asks", [True, False])
def test_pods_leave_together_and_one_is_replaced_if_more_is_asked_for_when_it_is_empty(asks: bool) -> None:
    """As the operator's next step: a wish of a minute ago is not remembered."""
    fleet = ready_fleet(3, Limits(maximum=3, gpus_per_pod=2))
    leaving = fleet._pods[:2]
    for pod in leaving:
        pod.drained_since = 0.0
    leaving[0].submit(Generation.of(0, 0.0, 10, 900), 0.0)
    more = Decision(Action.OUT, 3, Reason.QUEUE_TOO_OLD, "a request waits")
    enough = Decision(Action.HOLD, 1, Reason.STEADY, "enough")
    fleet._retire(2.0, leaving, enough)
    assert (len(fleet._pods), fleet._replicas) == (3, 3), "one of them still answers"
    fleet._retire(4.0, leaving, more if asks else enough)
    replaced = [event.reason for event in fleet.events]
    assert replaced == (["ScaleInUndone"] if asks else [])
    assert (leaving[1] in fleet._pods, len(fleet._pods), fleet._replicas) == (not asks, 3, 3)
    leaving[0].engine.advance()
    fleet._retire(60.0, [pod for pod in leaving if pod in fleet._pods], enough)
    assert leaving[0] not in fleet._pods
    assert (len(fleet._pods), fleet._replicas) == ((2, 2) if asks else (1, 1))


def test_a_pod_tells_of_the_throughput_gear_unless_it_is_pinned() -> None:
    executor, total = LinearExecutor(kv_tokens=40_000), Attainment(SLO)
    loads = {}
    for name, policy in (("shift", Policy()), ("tp", Policy(gear="tp2"))):
        pod = Pod(name, executor, replace(OPTIONS, policy=policy), total, -START.total_seconds, START)
        pod.submit(Generation.of(0, 0.0, 200, 300), 0.0)
        pod.engine.advance(1.0)
        loads[name] = pod.load(1.0, 95)
    assert loads["shift"].capacity_tokens_per_second > loads["tp"].capacity_tokens_per_second
    assert loads["shift"].step_seconds > loads["tp"].step_seconds
    assert loads["tp"].throughput_share == 1.0, "a single gear has nothing left to shift"
    assert loads["shift"].prompt_tokens_per_second == 20.0, "of ten seconds"
    assert 0 < loads["shift"].kv_used_fraction < 0.05
    assert loads["shift"].running_requests == 1
    assert loads["shift"].ttft_seconds > 0


def test_a_rate_of_output_is_neither_more_nor_less_than_what_was_made() -> None:
    """Seen every two seconds, ten seconds are five of these spans and not six."""
    executor = LinearExecutor(kv_tokens=40_000, costs=COSTS)
    pod = Pod("p", executor, OPTIONS, Attainment(SLO), -START.total_seconds, START)
    pod.submit(Generation.of(0, 0.0, 1, 2000), 0.0)
    rate = 0.0
    for second in range(0, 21, 2):
        pod.engine.advance(second)
        rate = pod.load(second, 95).output_tokens_per_second
    assert rate == pytest.approx(1 / 0.0204, rel=0.02)


def test_the_same_arguments_give_the_same_changes() -> None:
    arrivals = burst(20, 40) + burst(20, 2, start=20)
    first, second = (json.dumps(as_json(scaled(arrivals, service()))) for _ in range(2))
    assert first == second


def test_the_gate_alone_keeps_a_high_utilisation_from_ordering_a_pod() -> None:
    """84 % of what the base gear can do, in pods that a threshold keeps in the tp gear."""
    costs = {TP2: (0.001, 0.0002), SP2: (0.001, 0.0002)}
    never_shifts = replace(OPTIONS, policy=Policy(threshold_tokens=10_000))
    found = {}
    for may_shift in (True, False):
        asked = service(may_shift=may_shift)
        fleet = ScaledFleet(LinearExecutor(kv_tokens=40_000, costs=costs), never_shifts, asked)
        fleet.replay(burst(60, 20, output=10))
        found[may_shift] = fleet
    assert (orders(found[True]), orders(found[False])) == ({}, {"HighUtilisation": 1})
    assert found[True].gate_seconds > 30
    assert found[False].gate_seconds == 0
    assert as_json(found[False])["orders_by_reason"] == {"HighUtilisation": 1}
    console = Console(width=200, record=True)
    console.print(table("", {"gate": found[True], "no gate": found[False]}))
    (row,) = [line for line in console.export_text().splitlines() if "orders by reason" in line]
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["none", "1 HighUtilisation"]


def test_each_run_differs_from_the_one_before_in_one_thing() -> None:
    """With both at once nobody could tell what shift before scale does from what the pods do."""
    gated, ungated, pinned = runs("shift-calibrated")
    assert (gated.layout, gated.may_shift) == ("shift-calibrated", True)
    assert (ungated.layout, ungated.may_shift) == ("shift-calibrated", False)
    assert (pinned.layout, pinned.may_shift) == ("tp", False)


def shift_sim(monkeypatch: pytest.MonkeyPatch, path: Path, *more: str) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,1\n5,2000,20\n40,300,3\n")
    arguments = ["autoscale", "--trace", str(path), "--model", "llama-3.1-8b-fp8", "--hardware", "2xH100", *more]
    monkeypatch.setattr("sys.argv", ["shift-sim", *arguments])
    command.main()


def test_autoscale_shows_every_run_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ("--max", "2", "--ttft-ms", "2000", "--tpot-ms", "50")
    found = []
    for _ in range(2):
        shift_sim(monkeypatch, tmp_path / "t.csv", *arguments, "--json")
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    found_runs = json.loads(found[0])["runs"]
    assert set(found_runs) == {"with shift", "no gate", "without shift"}
    for run in found_runs.values():
        assert run["requests"]["finished"] == run["requests"]["met_both_targets"] == 3
        assert run["gpu_hours"] == pytest.approx(2 * run["duration_seconds"] / 3600)
    gears = {name: (run["base"], run["threshold"]["source"]) for name, run in found_runs.items()}
    calibrated = ("sp2", "Calibration")
    assert gears == {"with shift": calibrated, "no gate": calibrated, "without shift": ("tp2", "Pinned")}
    shift_sim(monkeypatch, tmp_path / "t.csv", *arguments)
    page = " ".join(capsys.readouterr().out.split())
    assert "GPU-hours" in page
    assert all(name in page for name in ("with shift", "no gate", "without shift"))
    assert "TTFT 2000 ms, TPOT 50 ms" in page


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--ttft-ms", "100", "--max", "0"), "--min 1 must lie in 1..--max 0"),
        (("--max", "2"), "no target is named; give --ttft-ms"),
        (("--ttft-ms", "-1", "--max", "2"), "a TTFT target of -1 ms must be above 0"),
        (("--ttft-ms", "9", "--max", "2", "--windows", "30"), "--windows '30' is not OUT,IN"),
        (("--ttft-ms", "9", "--max", "2", "--start-up", "1,x,3"), "--start-up '1,x,3' is not NODE,LOAD,WARM"),
        (("--ttft-ms", "9", "--max", "2", "--threshold", "9"), "--threshold does nothing with --layout shift-calibr"),
        (("--ttft-ms", "9", "--max", "2", "--percentile", "0"), "percentile 0 must lie in 1..100"),
    ],
)
def test_what_cannot_be_scaled_is_refused_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        shift_sim(monkeypatch, tmp_path / "t.csv", *arguments)
    assert end.value.code == command.EXIT_USAGE
    assert reason in capsys.readouterr().err


def test_a_service_that_turned_somebody_away_misses_its_targets_and_says_why() -> None:
    fleet = scaled([*burst(20, 1), Arrival(20, 9_000, 5)], service())
    console = Console(width=200, record=True)
    console.print(table("", {"with shift": fleet}), *notes({"with shift": fleet}))
    page = console.export_text()
    assert (fleet.refused, meets(fleet)) == (1, False)
    assert "no, 1 refused" in page
    assert "with shift: 1 refused, 9000 prompt tokens and 5 to generate exceed the 2048" in page


def test_nobody_pays_for_the_time_before_the_first_request() -> None:
    late, early = (scaled(burst(20, 2, start=start), service(2)) for start in (40_000.0, 0.0))
    assert late.gpu_hours == pytest.approx(early.gpu_hours)
    assert late.attainment == early.attainment
