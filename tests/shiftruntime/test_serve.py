"""`python -m shiftruntime serve` with real ranks: a real stream, health, SIGTERM, and the loss of a rank."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.engines import children, is_alive, ranks_of
from helpers.tiny_models import save_llama
from shiftprotos import contract
from shiftprotos.v1 import inference_pb2, inference_pb2_grpc

pytestmark = pytest.mark.ranks

START_SECONDS = 90.0
CALL_SECONDS = 30.0
LONG = 480


@dataclass
class Pod:
    process: subprocess.Popen[str]
    channel: grpc.Channel
    ops_port: int
    termination_log: Path

    @property
    def inference(self) -> inference_pb2_grpc.InferenceStub:
        return inference_pb2_grpc.InferenceStub(self.channel)

    def health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS).status

    def readyz(self) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/readyz", timeout=CALL_SECONDS) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def processes(self) -> tuple[int, list[int]]:
        (engine,) = children(self.process.pid, "shiftruntime.engine")
        return engine, ranks_of(engine)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_llama(folder, max_position_embeddings=512)
    return folder


@contextmanager
def pod(model: Path, log: Path) -> Iterator[Pod]:
    options = ["--ranks", "2", "--dtype", "float32", "--kv-memory", "4Mi", "--max-batched-tokens", "32"]
    ports = ["--port", "0", "--control-port", "0", "--ops-port", "0", "--threshold", "8", "--openai-port", "0"]
    environment = {**os.environ, contract.ENV_TERMINATION_LOG: str(log)}
    environment.pop(contract.ENV_CONTROL_TOKEN_FILE, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "shiftruntime", "serve", str(model), *options, *ports],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
    reader.start()
    try:
        found = wait_for(lambda: re.search(r"inference (\d+), control \d+, ops (\d+)", "".join(lines)), process, lines)
        with grpc.insecure_channel(f"127.0.0.1:{found[1]}") as channel:
            started = Pod(process, channel, int(found[2]), log)
            wait_for(lambda: started.readyz() == 200, process, lines)
            yield started
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(CALL_SECONDS)
        reader.join(CALL_SECONDS)
        process.stderr.close()


def wait_for(condition, process, lines):
    deadline = time.monotonic() + START_SECONDS
    while not (value := condition()):
        assert process.poll() is None, f"ended with {process.returncode}:\n{''.join(lines)}"
        assert time.monotonic() < deadline, f"not within {START_SECONDS:g} s:\n{''.join(lines)}"
        time.sleep(0.05)
    return value


def request(text: str, max_tokens: int) -> inference_pb2.GenerateRequest:
    sampling = inference_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return inference_pb2.GenerateRequest(text=text, sampling=sampling)


def assert_ended(pids: list[int], seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"processes {left} outlive the pod"
        time.sleep(0.02)


def test_a_pod_streams_and_drains(llama: Path, tmp_path: Path) -> None:
    with pod(llama, tmp_path / "log") as served:
        assert served.health() == health_pb2.HealthCheckResponse.SERVING
        info = served.inference.GetModelInfo(inference_pb2.GetModelInfoRequest(), timeout=CALL_SECONDS)
        assert (info.ranks, list(info.gears), info.dtype) == (2, ["tp2", "sp2"], "float32")
        answers = list(served.inference.Generate(request("The quick brown fox", 12), timeout=CALL_SECONDS))
        tokens = [token for answer in answers for token in answer.token_ids]
        assert len(tokens) == 12
        assert "".join(answer.text for answer in answers)
        assert answers[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
        assert (answers[-1].usage.prompt_tokens, answers[-1].usage.completion_tokens) == (20, 12)
        again = served.inference.Generate(request("The quick brown fox", 12), timeout=CALL_SECONDS)
        assert [token for answer in again for token in answer.token_ids] == tokens
        engine, ranks = served.processes()
        assert len(ranks) == 2
        running = served.inference.Generate(request("a long story", LONG), timeout=CALL_SECONDS)
        first = next(running)
        served.process.send_signal(signal.SIGTERM)
        rest = list(running)
        assert sum(len(answer.token_ids) for answer in (first, *rest)) == LONG, "a drain ends no stream early"
        assert served.process.wait(CALL_SECONDS) == 0
        assert_ended([engine, *ranks])
        assert not served.termination_log.exists()


def test_a_pod_that_loses_a_rank_ends_with_the_reason(llama: Path, tmp_path: Path) -> None:
    with pod(llama, tmp_path / "log") as served:
        engine, ranks = served.processes()
        streams = [served.inference.Generate(request(text, LONG), timeout=CALL_SECONDS) for text in ("one", "two")]
        for stream in streams:
            next(stream)
        os.kill(ranks[0], signal.SIGKILL)
        killed = time.monotonic()
        for stream in streams:
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "rank 0 was killed (SIGKILL)" in caught.value.details()
        assert time.monotonic() - killed < 3.0
        assert served.process.wait(CALL_SECONDS) == 1
        words = json.loads(served.termination_log.read_text())
        assert words["reason"] == contract.REASON_RANK_FAILED
        assert "rank 0 was killed (SIGKILL)" in words["message"]
        assert_ended([engine, *ranks])
