"""Scenario: a rank is killed or stopped, at every point of its life.

Required: the start or every stream fails with the rank's name, SIGKILL at once and SIGSTOP after the step timeout, and
no process is left.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import grpc
from helpers.engines import assert_gone, engine_options, engine_processes, is_alive, submit
from helpers.failures.outcome import START_SECONDS, Outcome
from helpers.failures.processes import arena_of, counters, patience, stop, waits_for_a_plan
from helpers.tiny_models import save_llama
from shiftruntime.engine.client import EngineClient, EngineFailed
from shiftruntime.engine.messages import PhaseUpdate
from shiftruntime.server.refusal import Refusal

START_POINTS = ("ranks", "open", "load", "kv", "warm", "calibrate", "self-check")
SERVING_POINTS = ("idle", "prefill", "decode", "between steps", "collective")
KILL_SECONDS = 1.0
STOP_MARGIN_SECONDS = 2.0  # two looks of the watchdog, half a second each, and the way to us
SHORT_TIMEOUT_SECONDS = 2.0
REAL_TIMEOUT_SECONDS = 10.0
_POINT_SECONDS = 20.0
_GONE_SECONDS = 3.0
_LONG = 400
_SIZES = (2, 2, 2, 3, 4, 6, 8, 1)  # ranks: mostly few, and every number now and then


@dataclass(frozen=True)
class Case:
    signal: signal.Signals
    point: str
    ranks: int
    rank: int
    timeout_seconds: float = SHORT_TIMEOUT_SECONDS

    def __str__(self) -> str:
        return f"{self.signal.name} to rank {self.rank} of {self.ranks} at {self.point}"


def cases(count: int, seed: int) -> list[Case]:
    """Every signal at every point before any comes twice; the last one has the real timeout."""
    rng = random.Random(seed)
    pairs = list(product((signal.SIGKILL, signal.SIGSTOP), START_POINTS + SERVING_POINTS))
    chosen = [pair for _ in range(-(-count // len(pairs))) for pair in rng.sample(pairs, len(pairs))][:count]
    found = []
    for i, (number, point) in enumerate(chosen):
        ranks = rng.choice([size for size in _SIZES if size > 1 or point != "collective"])
        real = i == count - 1 and number is signal.SIGSTOP
        found.append(Case(number, point, ranks, rng.randrange(ranks), REAL_TIMEOUT_SECONDS if real else 2.0))
    return found


def model(folder: Path) -> Path:
    """A Llama that divides over 1, 2, 3, 4, 6 and 8 ranks."""
    save_llama(folder, num_attention_heads=24, num_key_value_heads=24, head_dim=2, max_position_embeddings=512)
    return folder


def run(count: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="shift-signals-") as name:
        return asyncio.run(run_cases(model(Path(name)), cases(count, seed)))


async def run_cases(path: Path, chosen: list[Case]) -> Outcome:
    bad: list[str] = []
    seconds: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": []}
    for case in chosen:
        noticed, complaints = await strike(path, case)
        bad += [f"{case}: {complaint}" for complaint in complaints]
        if noticed is not None:
            over = case.timeout_seconds if case.signal is signal.SIGSTOP else 0.0
            seconds[case.signal.name].append(noticed - over)
    notes: dict[str, float | str] = {}
    for name, values in seconds.items():
        if values:
            what = "noticed after s" if name == "SIGKILL" else "noticed after the timeout by s"
            notes |= {f"{name} {what}, p50": statistics.median(values), f"{name} {what}, max": max(values)}
    return Outcome(len(chosen), bad, notes)


async def strike(path: Path, case: Case) -> tuple[float | None, list[str]]:
    """(seconds from the signal to the failure, what was wrong)."""
    options = engine_options(
        path,
        case.ranks,
        max_model_len=512,
        max_batched_tokens=16,
        kv_memory_bytes=8 << 20,
        calibrate=case.point == "calibrate",
        overlap=case.point != "between steps",  # a rank does not wait there when the next plan lies in its channel
        step_timeout_seconds=case.timeout_seconds,
        startup_timeout_seconds=START_SECONDS,
    )
    client = EngineClient(options)
    watcher = _Starting(case)
    try:
        async with asyncio.timeout(START_SECONDS):
            if case.point in START_POINTS:
                complaints = await _during_start(client, watcher)
            else:
                await client.start(watcher.phase)
                complaints = await _while_serving(client, watcher)
        late = _judge_time(case, watcher.seconds)
        await assert_gone(watcher.pids, _GONE_SECONDS * patience())
        return watcher.seconds, complaints + late
    except (TimeoutError, AssertionError, EngineFailed) as error:
        return None, [f"{type(error).__name__} {error}"]
    finally:
        for pid in watcher.pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        await client.stop(5.0)


class _Starting:
    """Strikes when the phase begins; knows the processes and when the signal was sent."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.pids: list[int] = []
        self.struck = 0.0
        self.seconds: float | None = None

    def phase(self, update: PhaseUpdate) -> None:
        if update.name == self.case.point and not update.done and not self.struck:
            self.strike(self.find())

    def find(self) -> int:
        """Pid of the rank."""
        engine, ranks = engine_processes()
        self.pids = [engine, *ranks]
        return ranks[self.case.rank]

    def strike(self, pid: int) -> None:
        self.struck = time.monotonic()
        os.kill(pid, self.case.signal)


async def _during_start(client: EngineClient, watcher: _Starting) -> list[str]:
    try:
        await client.start(watcher.phase)
        failure = await client.failed  # it struck at the very end
    except EngineFailed as error:
        failure = error
    if not watcher.struck:
        return [f"the start failed before: {failure}"]
    watcher.seconds = time.monotonic() - watcher.struck
    return _judge(watcher.case, failure)


async def _while_serving(client: EngineClient, watcher: _Starting) -> list[str]:
    case, pid = watcher.case, watcher.find()
    streams: list[Any] = []
    if case.point != "idle":
        prompt = [3 + i % 100 for i in range(_LONG if case.point == "prefill" else 7)]
        streams = [await client.submit(submit(name, prompt, 512 - len(prompt))) for name in ("a", "b")]
        if case.point != "prefill":
            for stream in streams:
                await anext(stream)
    with arena_of(watcher.pids[0], case.ranks) as arena:
        await _reach(case, pid, lambda: counters(arena, case.rank))
    watcher.strike(pid)
    failure = await asyncio.shield(client.failed)
    watcher.seconds = time.monotonic() - watcher.struck
    complaints = _judge(case, failure)
    for stream in streams:
        try:
            outputs = [output async for output in stream]
            complaints.append(f"a stream ended without an error: {outputs[-1:]}")
        except EngineFailed as error:
            complaints += _judge(case, error)
    return complaints


async def _reach(case: Case, pid: int, look: Any) -> None:
    """Leave the rank stopped at the point; a stopped one is killed, or stays so."""
    rng = random.Random(str(case))
    start = look()
    deadline = time.monotonic() + _POINT_SECONDS * patience()
    while True:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the point was not met; counters {look()}")
        await asyncio.sleep(rng.uniform(0.0, 0.004))
        waited = waits_for_a_plan(pid)
        stop(pid)
        now = look()
        inside = now[1] > now[2]
        reached = {
            "idle": True,
            "prefill": now != start and not waited,
            "decode": not waited,
            "between steps": waited and not inside,
            "collective": inside,
        }[case.point]
        if reached:
            return
        os.kill(pid, signal.SIGCONT)


def _judge(case: Case, failure: EngineFailed) -> list[str]:
    words = (
        "was killed (SIGKILL)" if case.signal is signal.SIGKILL else f"made no progress for {case.timeout_seconds:g} s"
    )
    complaints = []
    if f"rank {case.rank} {words}" not in failure.message or failure.reason != "RankFailed":
        complaints.append(f"the wrong words: {failure.reason}: {failure.message}")
    if Refusal.of(failure).code is not grpc.StatusCode.UNAVAILABLE:
        complaints.append(f"clients see {Refusal.of(failure).code}")
    return complaints


def _judge_time(case: Case, seconds: float | None) -> list[str]:
    if seconds is None:
        return []
    limit = KILL_SECONDS * patience()
    if case.signal is signal.SIGSTOP:
        idle = 0.3 * case.timeout_seconds if case.point == "idle" else 0.0  # until ranks are asked again
        limit = case.timeout_seconds + idle + STOP_MARGIN_SECONDS * patience()
        if seconds < 0.7 * case.timeout_seconds:
            return [f"blamed after {seconds:.2f} s, before the timeout of {case.timeout_seconds:g} s"]
    return [f"noticed after {seconds:.2f} s, the limit is {limit:.2f} s"] if seconds > limit else []
