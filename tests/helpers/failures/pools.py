"""Scenarios about room: a KV pool far below demand, a request that can never fit, a step far above the stall limit."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.engines import collect, engine_options, generate, running_engine, submit, until
from helpers.failures.outcome import START_SECONDS, Outcome
from helpers.failures.processes import patience
from helpers.tiny_models import save_llama
from shiftruntime.engine.client import EngineClient, RequestRefused

BLOCK_BYTES = 1536  # per rank of two, of the tiny model in float32
SHARES = (0.05, 0.1, 0.2)  # of the blocks that all requests would hold at once
_TOKENS = 64
_REFUSAL_SECONDS = 0.5


def small_pools(count: int, seed: int, shares: tuple[float, ...] = SHARES) -> Outcome:
    """``count`` requests at each share of their demand; in exact mode all get the tokens that they get with room."""
    with tempfile.TemporaryDirectory(prefix="shift-pools-") as name:
        save_llama(Path(name))
        return asyncio.run(_small_pools(Path(name), count, random.Random(seed), shares))


async def _small_pools(model: Path, count: int, rng: random.Random, shares: tuple[float, ...]) -> Outcome:
    requests = []
    for i in range(count):
        length = rng.randint(4, 40)
        requests.append(submit(str(i), [rng.randrange(3, 130) for _ in range(length)], _TOKENS - length))
    demand = count * _TOKENS // 4
    bad: list[str] = []
    notes: dict[str, float | str] = {}
    expected: list[list[int]] = []
    for share in (1.0, *shares):
        blocks = max(_TOKENS // 4, int(demand * share))
        options = engine_options(
            model,
            startup_timeout_seconds=START_SECONDS,
            exact=True,
            max_model_len=_TOKENS,
            max_num_seqs=count,
            kv_memory_bytes=blocks * BLOCK_BYTES,
        )
        async with running_engine(options) as client:
            total = (await client.state()).load.kv_blocks_total
            streams = [await client.submit(request) for request in requests]
            results = await asyncio.gather(*(collect(stream) for stream in streams))
            state = await until(client, lambda s, total=total: s.load.kv_blocks_free == total)  # type: ignore[misc]
        if share == 1.0:
            expected = list(results)
            continue
        what = f"with {total} blocks for a demand of {demand}"
        notes[f"preemptions {what}"] = state.load.preemptions
        bad += [f"request {i} got other tokens {what}" for i in range(count) if results[i] != expected[i]]
        if not state.load.preemptions:
            bad.append(f"nothing was preempted {what}")
    return Outcome(count * len(shares), bad, notes)


def never_fits(count: int, seed: int) -> Outcome:
    """Requests longer than a sequence can be, also while others run."""
    with tempfile.TemporaryDirectory(prefix="shift-fits-") as name:
        save_llama(Path(name))
        return asyncio.run(_never_fits(Path(name), count, random.Random(seed)))


async def _never_fits(model: Path, count: int, rng: random.Random) -> Outcome:
    bad: list[str] = []
    seconds: list[float] = []
    async with running_engine(
        engine_options(model, max_model_len=_TOKENS, startup_timeout_seconds=START_SECONDS)
    ) as client:
        neighbour = asyncio.create_task(generate(client, submit("neighbour", [5, 6, 7], _TOKENS - 3)))
        for i in range(count):
            length = rng.randint(1, 2 * _TOKENS)
            too_long = submit(
                f"long {i}", [5] * length, _TOKENS - length + rng.randint(1, 50) if length < _TOKENS else 1
            )
            bad += await _refused(client, too_long, seconds)
        tokens = await neighbour
        if len(tokens) != _TOKENS - 3:
            bad.append(f"the neighbour got {len(tokens)} tokens")
    seconds.sort()
    p50, p99 = (seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.99))
    if p99 > _REFUSAL_SECONDS * patience():
        bad.append(f"refused after {p99:.3f} s at the 99th percentile, the limit is {_REFUSAL_SECONDS:g} s")
    return Outcome(count, bad, {"refused after ms, p50": 1e3 * p50, "p99": 1e3 * p99})


async def _refused(client: EngineClient, request: object, seconds: list[float]) -> list[str]:
    started = time.monotonic()
    try:
        await client.submit(request)  # type: ignore[arg-type]
    except RequestRefused as refused:
        seconds.append(time.monotonic() - started)
        if refused.reason != "InvalidRequest" or f"the {_TOKENS} tokens" not in refused.message:
            return [f"refused with the wrong words: {refused.reason}: {refused.message}"]
        return []
    return ["it was admitted"]


def slow_is_not_dead(step_seconds: float, stall_seconds: float, layers: int, busy_loops: int) -> Outcome:
    """One step of at least ``step_seconds`` under foreign busy loops; the stall limit is far shorter."""
    with tempfile.TemporaryDirectory(prefix="shift-slow-") as name:
        save_llama(Path(name), num_hidden_layers=layers, max_position_embeddings=8192)
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy_loops)]
        try:
            return asyncio.run(_slow(Path(name), step_seconds, stall_seconds))
        finally:
            for loop in loops:
                loop.kill()
                loop.wait(10)


async def _slow(model: Path, step_seconds: float, stall_seconds: float) -> Outcome:
    options = engine_options(
        model, exact=True, max_model_len=8192, max_batched_tokens=8192, kv_memory_bytes=1 << 28,
        step_timeout_seconds=stall_seconds, startup_timeout_seconds=START_SECONDS,
    )  # fmt: skip
    length, took, tries = 128, 0.0, 0
    async with running_engine(options) as client:
        while took < step_seconds and length < 8192:
            tries += 1
            before = (await client.state()).gears
            await generate(client, submit(f"{length}", [3 + i % 100 for i in range(length)], 1))
            after = (await client.state()).gears
            took = sum(a.busy_seconds - b.busy_seconds for a, b in zip(after, before, strict=True))
            length = (
                min(8192, int(length * max(1.5, min(4.0, 1.2 * step_seconds / took))))
                if took < step_seconds
                else length
            )
        failed = client.failed.done()
    bad = ["the group failed"] if failed else []
    if took < step_seconds:
        bad.append(f"the slowest step took {took:.1f} s, {step_seconds:g} were wanted")
    return Outcome(tries, bad, {"slowest step, s": took, "stall limit, s": stall_seconds, "tokens in it": length})
