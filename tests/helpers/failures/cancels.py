"""Scenario: streams are cancelled in every phase, by abort, by a reader that leaves and by deadline.

Required: the blocks are free within two steps, the stream ends once, neighbours get the tokens that they get alone.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path

import msgspec
from helpers.engines import collect, engine_options, generate, running_engine, submit, until
from helpers.failures.outcome import START_SECONDS, Outcome
from helpers.tiny_models import save_llama
from shiftruntime.engine.client import EngineClient
from shiftruntime.engine.messages import EngineState, Finish, Output

PHASES = ("waiting", "prefill", "decode", "last token")
WAYS = ("abort", "leave", "deadline")
_MAX_STEPS = 2
_SECONDS = 30.0
_LENGTH = 256
_SLOTS = 3
_NEIGHBOUR = [17, 3, 99, 54, 23, 77, 8]


def run(count: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="shift-cancels-") as name:
        save_llama(Path(name), max_position_embeddings=_LENGTH)
        return asyncio.run(run_on(Path(name), count, seed))


async def run_on(model: Path, count: int, seed: int) -> Outcome:
    rng = random.Random(seed)
    options = engine_options(
        model,
        startup_timeout_seconds=START_SECONDS,
        exact=True,
        max_model_len=_LENGTH,
        max_num_seqs=_SLOTS,
        max_batched_tokens=16,
        prefix_cache=False,
    )
    bad: list[str] = []
    ends: Counter[str] = Counter()
    steps: list[int] = []
    async with running_engine(options) as client:
        total = (await client.state()).load.kv_blocks_total
        expected = await generate(client, submit("alone", _NEIGHBOUR, 60))
        kinds = list(product(PHASES, WAYS))
        for i in range(count):
            phase, way = kinds[i % len(kinds)]
            neighbours = _SLOTS if phase == "waiting" else rng.choice((0, 0, 1))
            others = [
                asyncio.create_task(collect(await client.submit(submit(f"{i}/{j}", _NEIGHBOUR, 60))))
                for j in range(neighbours)
            ]
            case = f"{i}: {way} in {phase} beside {neighbours}"
            try:
                async with asyncio.timeout(_SECONDS):
                    end, used = await _cancel(client, f"victim {i}", phase, way, neighbours, rng)
                    results = await asyncio.gather(*others)
                    await until(client, lambda s: s.load.kv_blocks_free == total, seconds=_SECONDS)
            except (TimeoutError, AssertionError) as error:
                bad.append(f"{case}: {type(error).__name__} {error}")
                break
            ends[end] += 1
            # Beside neighbours, whose steps go on between two looks, the number says when it was seen, not when it was.
            if not neighbours:
                steps.append(used)
                if used > _MAX_STEPS:
                    bad.append(f"{case}: its blocks were free after {used} steps")
            bad += [f"{case}: a neighbour got other tokens" for result in results if result != expected]
    notes: dict[str, float | str] = {f"ended {end}": number for end, number in sorted(ends.items())}
    return Outcome(count, bad, notes | {"steps until the blocks of one alone were free, max": max(steps, default=0)})


async def _cancel(
    client: EngineClient, name: str, phase: str, way: str, neighbours: int, rng: random.Random
) -> tuple[str, int]:
    """(how it ended, steps from the cancellation until nothing of it was left)."""
    prompt = [rng.randrange(3, 130) for _ in range(200 if phase == "prefill" else 20)]
    max_tokens = 30
    timeout = None
    if way == "deadline":  # within the phase, as far as a clock can hit it
        timeout = rng.uniform(0.0, 0.02) if phase in ("waiting", "prefill") else rng.uniform(0.05, 0.3)
    request = msgspec.structs.replace(submit(name, prompt, max_tokens), timeout_seconds=timeout)
    stream = await client.submit(request)
    wanted = {"decode": rng.randint(1, 20), "last token": max_tokens - 1}.get(phase, 0)
    outputs: list[Output] = []
    if way != "deadline":
        while sum(len(output.token_ids) for output in outputs) < wanted:
            outputs.append(await anext(stream))
        if phase == "prefill":
            await asyncio.sleep(rng.uniform(0.0, 0.01))
        client.abort(name)
        if way == "leave":
            await stream.aclose()  # type: ignore[attr-defined]
        start = await client.state()  # answered after the abort was
        state = await _gone(client, neighbours)
        if way == "leave":
            return "unread", _steps(state) - _steps(start)
    outputs += [output async for output in stream]
    finishes = [output.finish for output in outputs if output.finish is not None]
    assert len(finishes) == 1, f"it ended {len(finishes)} times"
    assert outputs[-1].finish is finishes[0], "something came after its end"
    if way == "deadline":
        start = await client.state()
        state = await _gone(client, neighbours)
    assert finishes[0] in (Finish.ABORT, Finish.DEADLINE, Finish.LENGTH), finishes
    return finishes[0].value, _steps(state) - _steps(start)


async def _gone(client: EngineClient, neighbours: int) -> EngineState:
    """Once the victim holds nothing: with neighbours it counts no more, alone every block is free."""

    def gone(state: EngineState) -> bool:
        load = state.load
        if not neighbours:
            return load.kv_blocks_free == load.kv_blocks_total
        return load.running_requests + load.waiting_requests <= neighbours

    return await until(client, gone, seconds=_SECONDS)


def _steps(state: EngineState) -> int:
    return sum(gear.steps for gear in state.gears)
