"""The command line, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shiftsim import __main__ as command

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
