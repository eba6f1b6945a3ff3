"""The command line, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shiftsim import __main__ as command

POD = ("--model", "llama-3.3-70b-fp8", "--hardware", "8xH200")
TRACE = "arrival_s,prompt_tokens,output_tokens\n0,100,1\n5,200,2\n10,300,3\n25,400,4\n"


def shift_sim(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["shift-sim", *arguments])
    command.main()


def test_a_trace_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TRACE)
    shift_sim(monkeypatch, "trace", str(path), "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] == 4
    assert found["duration_seconds"] == 25.0
    assert found["peak_prompt_tokens_per_second"] == 40.0
    assert found["prompt_tokens"] == {"sum": 1000, "mean": 250.0, "p50": 200, "p95": 400, "p99": 400, "p100": 400}
    shift_sim(monkeypatch, "trace", str(path))
    assert "4 requests in 25.0 s" in capsys.readouterr().out


def test_a_trace_that_cannot_be_used_ends_with_2_and_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TRACE + "3,1,1\n")
    with pytest.raises(SystemExit) as end:
        shift_sim(monkeypatch, "trace", str(path))
    assert end.value.code == command.EXIT_USAGE
    assert "t.csv, line 6" in capsys.readouterr().err


def replayed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, path: Path, *more: str) -> str:
    arguments = ("--trace", str(path), "--model", "llama-3.1-8b-fp8", "--hardware", "2xH100", *more)
    shift_sim(monkeypatch, "replay", *arguments)
    return str(capsys.readouterr().out)


def test_a_replay_gives_the_same_bytes_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TRACE)
    first, second = (replayed(monkeypatch, capsys, path, "--json", "--spread", "3") for _ in range(2))
    assert first == second
    other = replayed(monkeypatch, capsys, path, "--json", "--spread", "3", "--seed", "1")
    assert first != other
    found = json.loads(first)
    assert [layout["layout"] for layout in found["layouts"]] == ["dp", "tp", "sp", "shift", "shift-calibrated"]
    for layout in found["layouts"]:
        assert layout["requests"] == {"arrived": 4, "finished": 4, "refused": 0}
        assert (layout["prompt_tokens"], layout["output_tokens"]) == (1000, 10)
        assert sum(gear["tokens"] for gear in layout["gears"].values()) == 1000 + 10 - 4
        assert layout["keeps_up"]
        assert 0 < layout["ttft_seconds"]["p50"] < layout["end_to_end_seconds"]["max"] < 1
    assert [layout["engines"] for layout in found["layouts"]] == [2, 1, 1, 1, 1]
    assert set(found["layouts"][3]["gears"]) == {"tp2"}, "no step has more than 512 tokens"


def test_a_replay_is_shown_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TRACE + "30,200000,5\n")
    page = replayed(monkeypatch, capsys, path, "--layout", "tp", "--layout", "shift", "--replicas", "2")
    assert "2 × 2xH100, llama-3.1-8b-fp8" in page
    assert "keeps up" in page
    assert "tp: 1 refused, 200000 prompt tokens and 5 to generate exceed" in " ".join(page.split())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--layout", "zp8"), "layout 'zp8' is unknown"),
        (("--layout", "sp8"), "gear sp8 is of 8 GPUs, the hardware has 2"),
        (("--replicas", "0"), "--replicas 0 must be at least 1"),
        (("--max-num-seqs", "0"), "--max-num-seqs 0 must be at least 1"),
        (("--memory-fraction", "1.5"), "--memory-fraction 1.5 must be"),
        (("--tpot-target-ms", "-3"), "--tpot-target-ms -3 must be above 0"),
        (("--start", "90"), "no request in this part of the trace"),
        (("--step-ms", "2"), "--step-ms does nothing without --measured"),
        (("--kv-tokens", "9000"), "--kv-tokens does nothing without --measured; leave it out, or give --memory-fr"),
        (("--layout", "tp", "--threshold", "512"), "--threshold does nothing with --layout tp"),
        (("--memory-fraction", "0.05"), "leaves no room for its cache"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TRACE)
    with pytest.raises(SystemExit) as end:
        replayed(monkeypatch, capsys, path, *arguments)
    assert end.value.code == command.EXIT_USAGE
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--kv-cache", "fp8"), "--kv-cache does nothing with --measured, whose pod has its memory"),
        (("--weights", "views"), "--weights does nothing with --measured"),
        (("--memory-fraction", "0.5"), "--memory-fraction does nothing with --measured"),
        (("--kv-tokens", "0"), "--kv-tokens 0 must be at least 1"),
        (("--step-ms", "-1"), "--step-ms -1 must be 0 or more"),
    ],
)
def test_of_a_measured_pod_only_what_it_has_may_be_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TRACE)
    with pytest.raises(SystemExit):
        shift_sim(monkeypatch, "replay", "--trace", str(path), "--measured", "pod.json", *arguments)
    refused = capsys.readouterr().err
    assert reason in refused
    assert "None" not in refused


def test_who_refuses_has_not_kept_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,300000,10\n")
    shift_sim(monkeypatch, "replay", "--trace", str(path), *POD, "--layout", "tp", "--json")
    (found,) = json.loads(capsys.readouterr().out)["layouts"]
    assert found["requests"] == {"arrived": 1, "finished": 0, "refused": 1}
    assert not found["keeps_up"]


def test_a_threshold_that_no_policy_can_have_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TRACE)
    with pytest.raises(SystemExit):
        shift_sim(monkeypatch, "replay", "--trace", str(path), *POD, "--layout", "shift", "--threshold", "0")
    assert "--threshold: threshold 0 is outside 1..1048576" in capsys.readouterr().err
