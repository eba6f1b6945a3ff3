"""The executor of what a running pod measured: what it says of the steps that were measured, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shiftcore.costs import CostCurve, CostPoint
from shiftcore.layout import Gear
from shiftcore.request import Batch, Chunk
from shiftsim.errors import UserError
from shiftsim.executor.measured import MeasuredExecutor, Measurement, read
from shiftsim.generation import Generation
from shiftsim.layouts import parse
from shiftsim.planning import Measured, Settings
from shiftsim.replay import replay
from shiftsim.report_words import assumed
from shiftsim.trace import Arrival
from shiftsim.work import Work, work_of

TP2, SP2 = Gear(1, 2), Gear(2, 1)
SEQS, LENGTH, PAIR = 4, 512, 2e-7
SIZES = (1, 2, 4, 8, 256, 1024)


Step = tuple[tuple[int, int], ...]  # of each chunk: tokens computed before it, and its own


def truth(gear: Gear, step: Step) -> float:
    """A pod whose steps cost just this: prompts attend fast, and every chunk reads once what was computed before it."""
    seconds, each = {TP2: (0.004, 2e-4), SP2: (0.009, 1e-4)}[gear]
    for before, length in step:
        seconds += each * length + PAIR * before
    return seconds


def work(step: Step) -> Work:
    batch: Batch = tuple(Chunk(Generation.of(0, 0.0, 9999, 9), *chunk, samples=True) for chunk in step)
    return work_of(batch)


def measured_step(tokens: int) -> Step:
    """What the runtime measures at its start: decodes behind 64 tokens while sequences suffice, then whole prompts."""
    if tokens <= SEQS:
        return ((64, 1),) * tokens
    whole, rest = divmod(tokens, LENGTH)
    return ((0, LENGTH),) * whole + ((0, rest),) * (rest > 0)


def curve(gear: Gear) -> CostCurve:
    return CostCurve(tuple(CostPoint(n, truth(gear, measured_step(n)), 1e-6, 5) for n in SIZES), PAIR)


def executor(step_seconds: float = 0.0) -> MeasuredExecutor:
    return MeasuredExecutor(
        Measurement(SP2, {gear: curve(gear) for gear in (TP2, SP2)}), 4096, SEQS, LENGTH, step_seconds
    )


@pytest.mark.parametrize("gear", [TP2, SP2])
@pytest.mark.parametrize(
    "step",
    [
        *map(measured_step, SIZES),
        ((300, 1),) * 3,
        ((0, 253), (100, 1), (200, 1), (600, 1)),
        ((5000, 256),),
        ((0, 200), (0, 300), (0, 100)),
        ((0, 200), (400, 100)),
        ((400, 100), (70, 200), (300, 1)),
    ],
)
def test_a_step_takes_what_the_measured_pod_takes(gear: Gear, step: Step) -> None:
    """Context that was measured along is not counted twice: also where the pod measured no such context. A whole prompt
    beside a chunk takes nothing off what that one looks back at."""
    assert executor().seconds(gear, work(step)) == pytest.approx(truth(gear, step), rel=1e-9)
    assert executor(0.001).seconds(gear, work(step)) == pytest.approx(truth(gear, step) + 0.001, rel=1e-9)


@pytest.mark.parametrize("overlap", [True, False])
def test_what_is_added_to_each_step_is_not_hidden_by_planning_ahead(overlap: bool) -> None:
    """An output token takes so much longer, in steps that are planned ahead too."""
    found = Measurement(SP2, {gear: curve(gear) for gear in (TP2, SP2)}, SEQS, 1024, LENGTH)

    def tpot(step_seconds: float) -> float:
        pods = Measured(found, Settings(overlap=overlap), step_seconds=step_seconds)
        return replay("tp", *pods.engine(parse("tp", 2)), 1, [Arrival(0.0, 100, 50)]).measures.tpot.mean

    assert tpot(0.003) - tpot(0.0) == pytest.approx(0.003, rel=1e-9)


def test_a_forecast_takes_the_medians_as_they_are() -> None:
    """The choice of gears takes a larger step to cost no less than a smaller one; a CPU's kernels know better."""
    points = tuple(CostPoint(n, seconds, 1e-6, 5) for n, seconds in ((1, 0.05), (32, 0.11), (64, 0.08)))
    pod = MeasuredExecutor(Measurement(TP2, {TP2: CostCurve(points)}), 4096, 1, LENGTH)
    found = [pod.seconds(TP2, Work(n, 0, 0, 0, 1)) for n in (32, 48, 64, 96)]
    assert found == pytest.approx([0.11, 0.095, 0.08, 0.12])


def test_a_run_of_decodes_takes_its_steps_to_the_bit() -> None:
    pod, n = executor(0.0003), 3
    steps = [pod.seconds(TP2, Work(0, 0, n, 1000 + i * n, n)) for i in range(100)]
    assert list(pod.decode_seconds(TP2, Work(0, 0, n, 1000, n), 100)) == steps


def calibration() -> dict[str, Any]:
    return {
        "format": 1,
        "provenance": {"base_gear": "sp2", "max_num_seqs": SEQS, "max_batched_tokens": 1024, "max_model_len": LENGTH},
        "gears": {
            gear.name: {
                "points": [
                    {"tokens": p.tokens, "median_seconds": p.median_seconds, "spread_seconds": 1e-6, "samples": 5}
                    for p in curve(gear).points
                ],
                "pair_seconds": PAIR,
            }
            for gear in (TP2, SP2)
        },
    }


def state() -> dict[str, Any]:
    """As the JSON mapping of protobuf writes it."""
    costs = [
        {"tokens": p.tokens, "medianSeconds": p.median_seconds, "spreadSeconds": 1e-6, "samples": 5}
        for p in curve(SP2).points
    ]
    gears = [{"name": name, "costs": costs, "steps": "17"} for name in ("tp2", "sp2")]
    return {"baseGear": "sp2", "gears": gears, "load": {"maxRunningRequests": SEQS, "kvBlocksTotal": 40}}


def written(folder: Path, content: object) -> Path:
    path = folder / "measured.json"
    path.write_text(json.dumps(content))
    return path


def test_a_calibration_file_brings_costs_and_limits(tmp_path: Path) -> None:
    found = read(written(tmp_path, calibration()))
    assert found == Measurement(SP2, {gear: curve(gear) for gear in (TP2, SP2)}, SEQS, 1024, LENGTH)
    pod, options = Measured(found, Settings()).engine(parse("shift-calibrated", 2, base="sp2"))
    assert (options.max_num_seqs, options.max_batched_tokens, options.max_model_len) == (SEQS, 1024, LENGTH)
    assert pod.kv_tokens == SEQS * LENGTH
    _, options = Measured(found, Settings(max_num_seqs=2)).engine(parse("tp", 2))
    assert options.max_num_seqs == 2


def test_an_answer_of_get_state_brings_costs(tmp_path: Path) -> None:
    found = read(written(tmp_path, state()))
    assert found.costs[SP2].points == curve(SP2).points
    assert found.max_num_seqs == SEQS


@pytest.mark.parametrize(
    ("content", "given", "holds", "said"),
    [
        (state(), None, 640, False),
        (state(), 480, 480, False),
        (calibration(), None, SEQS * LENGTH, True),
        (calibration(), 480, 480, False),
    ],
    ids=["state", "state, given", "file", "file, given"],
)
def test_a_pod_holds_what_it_measured_and_what_is_assumed_is_said(
    tmp_path: Path, content: object, given: int | None, holds: int, said: bool
) -> None:
    pods = Measured(read(written(tmp_path, content)), Settings(), given)
    outcome = replay("tp", *pods.engine(parse("tp", 2)), 1, [Arrival(0.0, 30, 5), Arrival(0.0, 700, 5)])
    assert outcome.executor.kv_tokens == holds
    assert [f"{holds:,} tokens" in note for note in assumed([outcome])] == [True] * said


def test_layouts_that_were_not_measured_are_refused() -> None:
    pods = Measured(Measurement(SP2, {gear: curve(gear) for gear in (TP2, SP2)}), Settings())
    for name in ("tp", "sp", "sp2", "shift", "shift-calibrated"):
        pods.engine(parse(name, 2, base="sp2"))
    with pytest.raises(UserError, match=r"dp needs the costs of tp1, measured are tp2, sp2"):
        pods.engine(parse("dp", 2))


@pytest.mark.parametrize(
    "content",
    [[], {}, {"gears": {}}, {"gears": []}, {**calibration(), "provenance": {}}, {"gears": {"zp": {}}}, "text"],
)
def test_what_is_no_measurement_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match=r"measured\.json is neither"):
        read(written(tmp_path, content))


def test_a_base_gear_without_costs_is_refused(tmp_path: Path) -> None:
    content = calibration()
    del content["gears"]["sp2"]
    with pytest.raises(UserError, match="the base gear sp2 was not measured"):
        read(written(tmp_path, content))
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.json")
