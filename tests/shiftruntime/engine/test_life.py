"""Starts that fail, ranks that die or hang, engines that end: always a reason, always in time, nothing left running."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest
from helpers.engines import (
    assert_gone,
    collect,
    engine_options,
    engine_processes,
    generate,
    greedy,
    running_engine,
    submit,
    until,
)
from shiftcore.policy import Policy
from shiftruntime.engine import client as client_module
from shiftruntime.engine.client import EngineClient, EngineFailed, RequestRefused

from .conftest import TinyLlama

pytestmark = pytest.mark.ranks

PROMPT = [17, 3, 99, 54, 23, 77, 8]
LONG = 480


async def streams_and_processes(client: EngineClient) -> tuple[list[Any], int, list[int]]:
    """Two streams in the middle of their generation."""
    streams = [await client.submit(submit(name, PROMPT, LONG)) for name in ("a", "b")]
    for stream in streams:
        await anext(stream)
    return streams, *engine_processes()


async def assert_all_fail(client: EngineClient, streams: list[Any], seconds: float, sentence: str) -> None:
    async with asyncio.timeout(seconds):
        for stream in streams:
            with pytest.raises(EngineFailed, match=sentence) as caught:
                await collect(stream)
            assert caught.value.reason == "RankFailed"
        failure = await asyncio.shield(client.failed)
    assert failure.reason == "RankFailed"
    for call in (client.submit(submit("after", PROMPT, 1)), client.state()):
        with pytest.raises(EngineFailed):
            await call


async def test_a_killed_rank_ends_the_streams_within_three_seconds(llama: TinyLlama) -> None:
    async with running_engine(engine_options(llama.path, max_model_len=512)) as client:
        streams, engine, ranks = await streams_and_processes(client)
        os.kill(ranks[1], signal.SIGKILL)
        await assert_all_fail(client, streams, 3.0, r"rank 1 was killed \(SIGKILL\)")
        await assert_gone([engine, *ranks], 2.0)


async def test_a_stopped_rank_is_named_after_the_step_timeout(llama: TinyLlama) -> None:
    options = engine_options(llama.path, max_model_len=512, step_timeout_seconds=2.0)
    async with running_engine(options) as client:
        streams, engine, ranks = await streams_and_processes(client)
        os.kill(ranks[1], signal.SIGSTOP)
        stopped = time.monotonic()
        await assert_all_fail(client, streams, 5.0, "rank 1 made no progress for 2 s")
        assert time.monotonic() - stopped >= 1.5
        await assert_gone([engine, *ranks], 5.0)


async def test_an_engine_that_stands_still_itself_is_ended_and_named(
    llama: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_STANDSTILL_MARGIN_SECONDS", 1.0)
    async with running_engine(engine_options(llama.path, max_model_len=512, step_timeout_seconds=2.0)) as client:
        streams, engine, ranks = await streams_and_processes(client)
        os.kill(engine, signal.SIGSTOP)
        await assert_all_fail(
            client, streams, 10.0, "the engine process made no progress for 3 s .its process is stopped"
        )
        await assert_gone([engine, *ranks], 5.0)


async def test_the_ranks_end_with_their_engine(llama: TinyLlama) -> None:
    async with running_engine(engine_options(llama.path, max_model_len=512)) as client:
        streams, engine, ranks = await streams_and_processes(client)
        os.kill(engine, signal.SIGKILL)
        await assert_all_fail(client, streams, 2.0, "the engine process ended unexpectedly")
        await assert_gone([engine, *ranks], 2.0)


async def test_a_tiny_pool_preempts_and_loses_no_token_and_a_drain_finishes_what_there_is(llama: TinyLlama) -> None:
    """Many sequences are allowed, and the pool holds little more than one."""
    options = engine_options(
        llama.path, max_model_len=64, max_num_seqs=64, kv_memory_bytes=20 * 1536, policy=Policy(threshold_tokens=4)
    )
    prompts = [[(31 * i + 7 * j) % 120 + 3 for j in range(12)] for i in range(4)]
    async with running_engine(options) as client:
        total = (await client.state()).load.kv_blocks_total
        assert 16 <= total < 4 * 13, "the requests must not fit at once"
        streams = [await client.submit(submit(str(i), prompt, 40)) for i, prompt in enumerate(prompts)]
        assert (await client.drain()).draining
        with pytest.raises(RequestRefused, match="draining") as caught:
            await client.submit(submit("new", PROMPT, 1))
        assert caught.value.reason == "Draining"
        results = await asyncio.gather(*(collect(stream) for stream in streams))
        state = await until(client, lambda s: s.load.kv_blocks_free == total)
        assert results == [greedy(llama.oracle, prompt, 40) for prompt in prompts]
        assert sum(gear.tokens for gear in state.gears) > 4 * (12 + 39), "nothing was computed twice: no preemption"
        engine, ranks = engine_processes()
        started = time.monotonic()
        await client.stop(20.0)
        assert time.monotonic() - started < 15.0, "it was ended by force"
        await assert_gone([engine, *ranks], 0.5)
        assert not client.failed.done(), "an ordered end is no failure"


async def test_one_rank_alone(llama: TinyLlama) -> None:
    async with running_engine(engine_options(llama.path, ranks=1, max_model_len=64)) as client:
        assert await generate(client, submit("a", PROMPT, 12)) == greedy(llama.oracle, PROMPT, 12)
        state = await client.state()
        assert [(gear.name, gear.steps) for gear in state.gears] == [("tp1", 12)]
        assert (state.shifts, state.crossover_reason) == (0, "SingleGear")


@pytest.mark.parametrize(
    ("changes", "reason", "sentence"),
    [
        ({"ranks": 1, "model": "/nowhere/model"}, "ModelNotFound", "/nowhere/model"),
        ({"ranks": 3}, "InvalidLayout", "8 query heads do not divide over 3 ranks"),
        ({"ranks": 1, "kv_memory_bytes": 20_000}, "OutOfMemory", "holds 24 tokens, less than one sequence of 512"),
        ({"ranks": 1, "max_model_len": 513}, "InvalidArgument", "513 exceeds the 512 positions"),
    ],
)
async def test_a_start_that_cannot_succeed_says_why(
    llama: TinyLlama, changes: dict[str, Any], reason: str, sentence: str
) -> None:
    client = EngineClient(engine_options(**({"model": llama.path} | changes)))
    try:
        with pytest.raises(EngineFailed, match=sentence) as caught:
            await client.start(lambda _: None)
        assert caught.value.reason == reason
    finally:
        await client.stop(5.0)
