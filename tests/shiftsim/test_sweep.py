"""Many replays side by side."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from shiftsim import __main__ as command
from shiftsim import poisson

COMMON = ("--model", "llama-3.1-8b-fp8", "--hardware", "2xH100")
RATES = ("--rates", "2,50", "--prompts", "100,2000", "--output", "4", "--requests", "20")


def sweep(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.argv", ["shift-sim", "sweep", *COMMON, *more])
    command.main()


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = [arrival.seconds for arrival in poisson.arrivals(4.0, 20_000, 10, 5)]
    gaps = [after - before for before, after in pairwise(times)]
    assert mean(gaps) == pytest.approx(0.25, rel=0.03)
    squares = mean(gap * gap for gap in gaps)
    assert squares == pytest.approx(2 * 0.25**2, rel=0.1), "the spread of an exponential distribution"
    faster = [arrival.seconds for arrival in poisson.arrivals(8.0, 20, 10, 5)]
    assert faster == pytest.approx([seconds / 2 for seconds in times[:20]])


def test_two_workers_give_the_bytes_of_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pages = []
    for workers in ("1", "2"):
        sweep(monkeypatch, *RATES, "--layout", "tp", "--layout", "sp", "--workers", workers, "--json")
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    cells = json.loads(pages[0])["cells"]
    wanted = [(rate, prompt, name) for rate in (2.0, 50.0) for prompt in (100, 2000) for name in ("tp", "sp")]
    assert [(cell["rate"], cell["prompt_tokens"], cell["layout"]) for cell in cells] == wanted
    assert all(cell["finished"] == 20 for cell in cells)
    times = [cell["ttft_p50_seconds"] for cell in cells if cell["layout"] == "tp"]
    assert times[0] < times[1], "a longer prompt takes longer"


def test_a_trace_is_swept_by_its_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1000,5\n1,3000,5\n2,1000,5\n")
    sweep(monkeypatch, "--trace", str(path), "--speeds", "1,1000", "--layout", "tp", "--workers", "1", "--json")
    slow, fast = json.loads(capsys.readouterr().out)["cells"]
    assert slow["ttft_p95_seconds"] < fast["ttft_p95_seconds"]
    assert slow["finished"] == fast["finished"] == 3


def test_a_sweep_is_shown_in_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    sweep(monkeypatch, "--rates", "1", "--prompts", "100", "--requests", "3", "--workers", "1")
    page = capsys.readouterr().out
    assert all(name in page for name in ("req/s", "tokens/s", "refused", "shift-calibrated", "dp"))


def test_a_load_too_short_to_tell_who_keeps_up_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The minute to drain is longer than a load of many requests per second, and would hide who drowns."""
    arguments = ("--rates", "2,5000", "--prompts", "2000", "--output", "4", "--requests", "20", "--layout", "tp")
    sweep(monkeypatch, *arguments, "--workers", "1", "--json")
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["keeps_up"], cell["too_short"]) for cell in cells] == [(True, False), (True, True)]
    sweep(monkeypatch, *arguments, "--workers", "1")
    assert "1 of 2 loads are too short to tell who keeps up; give more --requests" in capsys.readouterr().out


def test_a_sweep_says_how_many_were_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Without it a cell that refuses long requests looks like one with low latencies."""
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,900,5\n" * 7 + "0,100,5\n")
    sweep(monkeypatch, "--trace", str(path), "--layout", "tp", "--max-model-len", "500", "--workers", "1")
    row = next(line for line in capsys.readouterr().out.splitlines() if "tp" in line)
    assert row.split("│")[-2].strip() == "7"


def test_the_json_of_a_sweep_says_all_that_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,100,5\n2,100,5\n")
    part = ("--trace", str(path), "--start", "1", "--end", "9", "--spread", "2", "--threshold", "300")
    sweep(monkeypatch, *part, "--layout", "shift", "--workers", "1", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["threshold_tokens"], found["base"]) == (300, "sp2")
    window = {"name": "t.csv", "start_seconds": 1.0, "end_seconds": 9.0, "speed": 1.0, "spread_seconds": 2.0, "seed": 0}
    assert found["load"]["trace"] == window


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "a sweep needs a load"),
        (("--rates", "1"), "give --prompts"),
        (("--trace", "t.csv", "--scales", "2"), "--scales has another name; give --speeds"),
        ((*RATES, "--rate", "2"), "--rate has another name; give --speed"),
        (("--rates", "0", "--prompts", "9"), "--rates '0' must be numbers above 0"),
        (("--rates", "1", "--prompts", "9.5"), "--prompts 9.5 is no whole number"),
        ((*RATES, "--workers", "0"), "--workers 0 must be at least 1"),
        ((*RATES, "--layout", "zp"), "layout 'zp' is unknown"),
        ((*RATES, "--requests", "0"), "0 requests must be at least 1"),
        ((*RATES, "--speeds", "1"), "--speeds does nothing with --rates; leave it out, or give --trace"),
        ((*RATES, "--start", "1", "--end", "2"), "--start and --end do nothing with --rates"),
        ((*RATES, "--speed", "2"), "--speed does nothing with --rates"),
        ((*RATES, "--spread", "2"), "--spread does nothing with --rates"),
        (("--trace", "t.csv", "--output", "250"), "--output does nothing with --trace, whose answers"),
        (("--trace", "t.csv", "--req", "9"), "--requests does nothing with --trace"),
        ((*RATES, "--layout", "tp", "--threshold", "9"), "--threshold does nothing with --layout tp, which has no"),
        ((*RATES, "--layout", "tp", "--base", "sp2"), "--base does nothing with --layout tp, which does not shift"),
        ((*RATES, "--memory-fraction", "0.05", "--workers", "1"), "leaves no room for its cache"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(SystemExit) as end:
        sweep(monkeypatch, *arguments)
    assert end.value.code == command.EXIT_USAGE
    assert reason in capsys.readouterr().err
