"""Scenario: SIGTERM while the pod starts, is idle, is busy, and has a prompt half computed.

Required: exit code 0, running streams get every token, nothing is left.
"""

from __future__ import annotations

import random
import re
import signal
import tempfile
import threading
import time
from pathlib import Path

import grpc
from helpers.failures.outcome import Outcome
from helpers.failures.processes import patience
from helpers.pods import Pod, pod, still_there
from helpers.tiny_models import save_llama
from shiftprotos.v1 import inference_pb2, inference_pb2_grpc

POINTS = ("mid-prefill", "load", "busy", "idle")
_PHASES = ("ranks", "load", "warm", "self-check")
_LENGTH = 512
_BUSY_TOKENS = 150
_DRAIN_SECONDS = "300"  # no stream ends for want of time on a busy machine
_END_SECONDS = 20.0
_GONE_SECONDS = 2.0


def run(count: int, seed: int) -> Outcome:
    rng = random.Random(seed)
    bad: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="shift-drains-") as name:
        model = Path(name) / "model"
        save_llama(model, max_position_embeddings=_LENGTH)
        for i in range(count):
            point = POINTS[i % len(POINTS)]
            try:
                seconds, complaints = _drain(model, Path(name) / f"log{i}", point, rng)
            except (TimeoutError, StopIteration, grpc.RpcError) as error:
                bad.append(f"{point}: {type(error).__name__} {error}")
                continue
            bad += [f"{point}: {complaint}" for complaint in complaints]
            slowest = max(slowest, seconds)
    return Outcome(count, bad, {"from SIGTERM to the end, s, max": slowest})


def _drain(model: Path, log: Path, point: str, rng: random.Random) -> tuple[float, list[str]]:
    with pod(model, log, "--drain-seconds", _DRAIN_SECONDS) as served, grpc.insecure_channel(served.address) as channel:
        if point == "load":
            phase = rng.choice(_PHASES)
            served.wait_for(lambda: re.search(rf"phase {phase}", served.log))
        else:
            served.wait_ready()
        streams = _streams(channel, point)
        pids = served.pids()
        sent = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        for stream in streams:
            stream.join(_END_SECONDS * patience())
        code = _wait(served)
        complaints = [f"a stream ended with {stream.ended}" for stream in streams if stream.ended != "complete"]
        if code != 0:
            complaints.append(f"exit code {code}: {served.log[-500:]}")
        if left := still_there(pids, _GONE_SECONDS * patience()):
            complaints.append(f"processes {left} are left")
        if log.exists():
            complaints.append(f"a termination log was written: {log.read_text()}")
        return time.monotonic() - sent, complaints


def _wait(served: Pod) -> int | None:
    deadline = time.monotonic() + _END_SECONDS * patience()
    while served.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return served.process.returncode


def _streams(channel: grpc.Channel, point: str) -> list[_Stream]:
    """Two accepted requests; the busy ones have their first token, the others a long prompt."""
    if point not in ("busy", "mid-prefill"):
        return []
    prompt = 7 if point == "busy" else 400
    streams = [_Stream(channel, prompt, _BUSY_TOKENS if point == "busy" else 5) for _ in range(2)]
    for stream in streams:
        stream.begin(first_token=point == "busy")
    return streams


class _Stream:
    """Read in a thread, so that several are read while the pod drains."""

    def __init__(self, channel: grpc.Channel, prompt_tokens: int, max_tokens: int) -> None:
        sampling = inference_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        ids = inference_pb2.TokenIds(ids=[3 + i % 100 for i in range(prompt_tokens)])
        request = inference_pb2.GenerateRequest(tokens=ids, sampling=sampling)
        self._call = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=_END_SECONDS * patience())
        self._wanted = max_tokens
        self._tokens = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.ended = "nothing"

    def begin(self, first_token: bool) -> None:
        self._call.initial_metadata()  # accepted
        if first_token:
            self._tokens += len(next(self._call).token_ids)
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._tokens += len(answer.token_ids)
        except grpc.RpcError as error:
            self.ended = f"{error.code()}: {error.details()}"
            return
        self.ended = "complete" if self._tokens == self._wanted else f"{self._tokens} of {self._wanted} tokens"
