"""Scenario: ten times as many requests as the pod can serve.

Required: refusals leave the server fast, every accepted stream ends, goodput does not collapse, no block is lost.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
from helpers.failures.outcome import Outcome
from helpers.failures.processes import patience
from helpers.pods import Pod, pod
from helpers.tiny_models import save_llama
from shiftprotos import contract
from shiftprotos.v1 import inference_pb2, inference_pb2_grpc

FACTOR = 10
P50_SECONDS, P99_SECONDS = 0.05, 0.5
_SLOTS = 4
_TOKENS = 24
_CAPACITY_SECONDS = 5.0
_CALL_SECONDS = 120.0
_COLLAPSE = 0.5  # of the tokens per second without overload
_OPTIONS = ("--exact", "--max-num-seqs", str(_SLOTS), "--max-waiting", str(_SLOTS), "--no-prefix-cache")


def run(seconds: float) -> Outcome:
    patience()  # as it is before the load
    with tempfile.TemporaryDirectory(prefix="shift-overload-") as name:
        model = Path(name) / "model"
        save_llama(model)
        with pod(model, Path(name) / "log", *_OPTIONS) as served:
            served.wait_ready()
            return asyncio.run(_overload(served, seconds))


async def _overload(served: Pod, seconds: float) -> Outcome:
    async with grpc.aio.insecure_channel(served.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        before = (await stub.GetLoads(inference_pb2.GetLoadsRequest(), timeout=_CALL_SECONDS)).load
        capacity = await _capacity(stub)  # requests per second
        ends: Counter[str] = Counter()
        calls: set[asyncio.Task[None]] = set()
        started = time.monotonic()
        sent = 0
        while (elapsed := time.monotonic() - started) < seconds:
            while sent < elapsed * capacity * FACTOR:
                calls.add(asyncio.create_task(_call(stub, sent, ends)))
                sent += 1
            await asyncio.sleep(0.005)
        in_time = ends["complete"]
        await asyncio.gather(*calls)
        after = (await stub.GetLoads(inference_pb2.GetLoadsRequest(), timeout=_CALL_SECONDS)).load
    _, metrics = await asyncio.to_thread(served.get, "/metrics")
    bad = [f"{number} calls ended with {end}" for end, number in ends.items() if end not in ("complete", "refused")]
    if after.kv_blocks_free != before.kv_blocks_free:
        bad.append(f"{before.kv_blocks_free} blocks were free before and {after.kv_blocks_free} after")
    goodput = in_time / seconds
    if goodput < _COLLAPSE * capacity:
        bad.append(f"goodput fell from {capacity:.1f} to {goodput:.1f} requests per second")
    if not ends["refused"]:
        bad.append("nothing was refused: this was no overload")
    p50, p99 = (_quantile(metrics, share) for share in (0.5, 0.99))
    for name, value, limit in (("p50", p50, P50_SECONDS), ("p99", p99, P99_SECONDS)):
        if value > limit * patience():
            bad.append(f"{name} of refusals is up to {value:g} s, the limit is {limit:g} s")
    notes: dict[str, float | str] = {
        "capacity, requests/s": capacity, "goodput, requests/s": goodput, "offered, requests/s": sent / seconds,
        "complete": ends["complete"], "refused": ends["refused"],
        "refused in the server within s, p50": p50, "p99": p99,
    }  # fmt: skip
    return Outcome(sent, bad, notes)


async def _capacity(stub: inference_pb2_grpc.InferenceStub) -> float:
    """Requests per second with every place taken and nobody waiting."""
    ends: Counter[str] = Counter()
    started = time.monotonic()

    async def one_after_another() -> None:
        while time.monotonic() - started < _CAPACITY_SECONDS:
            await _call(stub, 0, ends)

    await asyncio.gather(*(one_after_another() for _ in range(_SLOTS)))
    if set(ends) != {"complete"}:
        raise RuntimeError(f"the load without overload ended with {ends}")
    return ends["complete"] / (time.monotonic() - started)


async def _call(stub: inference_pb2_grpc.InferenceStub, number: int, ends: Counter[str]) -> None:
    sampling = inference_pb2.SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True)
    prompt = inference_pb2.TokenIds(ids=[3 + (number * 7 + i) % 100 for i in range(16)])
    tokens = 0
    try:
        async for answer in stub.Generate(
            inference_pb2.GenerateRequest(tokens=prompt, sampling=sampling), timeout=_CALL_SECONDS
        ):
            tokens += len(answer.token_ids)
    except grpc.aio.AioRpcError as error:
        refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not tokens
        ends["refused" if refused else f"{error.code()} after {tokens} tokens: {error.details()}"] += 1
    else:
        ends["complete" if tokens == _TOKENS else f"{tokens} of {_TOKENS} tokens"] += 1


def _quantile(metrics: str, share: float) -> float:
    """Upper bound in seconds, from the buckets of the server's own histogram."""
    pattern = rf'{contract.METRIC_REFUSAL_SECONDS}_bucket{{(?=[^}}]*outcome="rejected")[^}}]*le="([^"]+)"[^}}]*}} (\S+)'
    buckets = sorted((float(bound), float(number)) for bound, number in re.findall(pattern, metrics))
    total = buckets[-1][1] if buckets else 0.0
    return next((bound for bound, number in buckets if total and number >= share * total), float("inf"))
