"""The smallest fleet that meets the targets of a resource."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.linear_executor import SP2, TP2, LinearExecutor
from shiftsim import __main__ as command
from shiftsim.engine import EngineOptions
from shiftsim.slo import Slo
from shiftsim.trace import Arrival
from shiftsim.whatif import Demand, attempt, smallest

OPTIONS = EngineOptions(max_num_seqs=16, max_batched_tokens=256, max_model_len=2048)
COSTS = {TP2: (0.02, 0.0004), SP2: (0.05, 0.000001)}
BURST = [Arrival(i * 0.02, 200, 4) for i in range(150)]
RESOURCE = """\
kind: Secret
---
kind: ShiftDeployment
metadata: {name: chat}
spec:
  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct-FP8"}
  parallelism: {gpus: 2}
  slo: {ttftMs: 500, tpotMs: 60}
"""


@pytest.mark.parametrize("slo", [Slo(1.0, 0.2), Slo(0.5), Slo(None, 0.06), Slo(5.0, 5.0, 50)])
def test_bisection_finds_what_trying_all_finds(slo: Slo) -> None:
    executor, demand = LinearExecutor(kv_tokens=40_000, costs=COSTS), Demand.of(BURST)
    tried = []
    answer = smallest(executor, OPTIONS, slo, lambda: BURST, 12, tried=tried.append)
    verdicts = [attempt(executor, OPTIONS, slo, lambda: BURST, engines, demand) for engines in range(1, 9)]
    assert answer.smallest == next(verdict for verdict in verdicts if verdict.meets)
    assert len(tried) < 8
    if answer.smallest.engines > 1:
        assert answer.below == verdicts[answer.smallest.engines - 2]
        assert answer.below.missed in ("TTFT", "TPOT")


def test_what_no_fleet_can_meet_ends_at_the_most() -> None:
    answer = smallest(LinearExecutor(kv_tokens=40_000, costs=COSTS), OPTIONS, Slo(0.001), lambda: BURST, 3)
    assert answer.smallest is None
    assert (answer.below.engines, answer.below.missed) == (3, "TTFT")


def test_a_request_that_fits_nowhere_is_no_matter_of_size() -> None:
    arrivals = [Arrival(0.0, 3000, 4)]
    answer = smallest(LinearExecutor(kv_tokens=4096), OPTIONS, Slo(9.0), lambda: arrivals, 8)
    assert answer.smallest is None
    assert answer.below.engines == 1
    assert "3000 prompt tokens" in answer.below.refusal


REQUESTS = "0,100,4\n1,2000,9\n3,300,3\n"


def whatif(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, *more: str, requests: str = REQUESTS) -> None:
    resource, trace = folder / "chat.yaml", folder / "t.csv"
    resource.write_text(text)
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + requests)
    arguments = [str(resource), "--trace", str(trace), *(more or ("--hardware", "2xH100"))]
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.argv", ["shift-sim", "whatif", *arguments])
    command.main()


def test_a_resource_is_answered_in_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whatif(monkeypatch, tmp_path, RESOURCE, "--hardware", "2xH100", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["resource"], found["model"]) == ("chat", "llama-3.1-8b-fp8")
    assert [(row["layout"], row["gpus"]) for row in found["layouts"]] == [("shift", 2), ("tp", 2), ("dp", 1)]
    assert found["layouts"][0]["gpu_hours"] == pytest.approx(2 * 3 / 3600)
    assert 0 < found["layouts"][0]["ttft_seconds"] < 0.5
    whatif(monkeypatch, tmp_path, RESOURCE)
    page = " ".join(capsys.readouterr().out.split())
    assert "GPU-hours" in page
    assert "p95 TTFT 500 ms" in page


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("gpus: 2", "gpus: 4", "--hardware 2xH100 has 2 GPUs, spec.parallelism.gpus is 4"),
        ("gpus: 2", "gpus: two", "spec.parallelism.gpus is 'two'; write a whole number"),
        ("gpus: 2", "gpus: 2, sequence: 2, tensor: 2", "spec.parallelism: sequence 2 × tensor 2 = 4, but gpus is 2"),
        ("Llama-3.1-8B", "Unheard-Of", "of which no shape is known; give --model"),
        ("{ttftMs: 500, tpotMs: 60}", "{}", "spec.slo has no target"),
        ("ttftMs: 500", "ttftMs: -5", "spec.slo.ttftMs is -5; write a whole number"),
        ("  slo:", "  shift: {policy: Fast}\n  slo:", "spec.shift.policy 'Fast' is unknown; use Auto"),
        (
            "  slo:",
            "  shift: {schedules: [{name: night, start: '22:00', end: '06:00', policy: Throughput}]}\n  slo:",
            "spec.shift.schedules changes the policy by the clock on the wall, which a trace does not have",
        ),
        ("  slo:", "  engine: {maxNumSeqs: 0}\n  slo:", "spec.engine.maxNumSeqs is 0; write a whole number"),
        ("  slo:", "  engine: {gpuMemoryPercent: 99}\n  slo:", "spec.engine.gpuMemoryPercent 99 must lie in 10..95"),
        ("  slo:", "  engine: {kvCacheDtype: fp4}\n  slo:", "spec.engine.kvCacheDtype 'fp4' is unknown; use auto"),
        ("Instruct-FP8", "Instruct-AWQ", "weights in awq, whose cost is not known; give --model with the path"),
        ("Instruct-FP8", "Instruct-quantized.w4a16", "weights in w4a16, whose cost is not known"),
        ("Instruct-FP8", "Instruct/llama-Q4_K_M.gguf", "whose cost is not known"),
        ('Instruct-FP8"', 'Instruct", quantization: int8', "spec.model has quantization int8, whose cost is not known"),
        ("kind: Secret", "kind: ShiftDeployment", "has 2 of kind ShiftDeployment, must have one"),
        ("metadata: {name", "metadata: {{name", "no YAML"),
    ],
)
def test_a_resource_that_cannot_be_used_is_refused_by_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    before: str, after: str, reason: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as end:
        whatif(monkeypatch, tmp_path, RESOURCE.replace(before, after))
    assert end.value.code == command.EXIT_USAGE
    assert reason in " ".join(capsys.readouterr().err.split())


MORE = """\
  replicas: 3
  suspend: false
  runtime: {image: mine}
  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct-FP8", revision: abc}
  shift: {adaptive: {mode: Apply}}
  engine: {prefixCaching: true, kvCacheDtype: bfloat16}
"""


def test_what_is_set_and_not_simulated_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whatif(monkeypatch, tmp_path, RESOURCE + MORE, "--hardware", "2xH100", "--json")
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert [note.partition(" is not simulated")[0] for note in notes[:3]] == [
        "spec.replicas", "spec.shift.adaptive", "prefix caching",
    ]  # fmt: skip
    assert notes[3:] == ["not simulated: spec.model.revision, spec.runtime"]
    whatif(monkeypatch, tmp_path, RESOURCE + MORE)
    assert "spec.shift.adaptive is not simulated" in " ".join(capsys.readouterr().out.split())
    whatif(monkeypatch, tmp_path, RESOURCE + "  engine: {prefixCaching: false}\n  shift: {adaptive: {mode: 'Off'}}\n")
    assert "simulated" not in capsys.readouterr().out


def test_the_share_of_memory_that_the_cache_gets_is_that_of_the_resource(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One GPU has 74 GB free beside the weights; a tenth holds 56,000 tokens, the 80 % that pods take 450,000."""

    def binding(engine: str) -> str:
        text = RESOURCE.replace("gpus: 2", "gpus: 1").replace("500", "60000") + engine
        whatif(monkeypatch, tmp_path, text, "--hardware", "1xH100", "--json", requests="0,90000,4\n")
        return str(json.loads(capsys.readouterr().out)["layouts"][2]["binding"])

    assert binding("") == "one engine is enough"
    assert "90000 prompt tokens and 4 to generate exceed the 5" in binding("  engine: {gpuMemoryPercent: 10}\n")
