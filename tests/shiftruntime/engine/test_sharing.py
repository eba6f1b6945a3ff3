"""A real engine with two ranks: prefix hits, siblings, tenants, priorities and deadlines as a client sees them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from helpers.engines import engine_options, greedy, running_engine, submit, until
from shiftruntime.engine.client import EngineClient, RequestRefused
from shiftruntime.engine.messages import EngineState, Finish, Journey, Output, Submit

from .conftest import TinyLlama

pytestmark = [pytest.mark.ranks, pytest.mark.asyncio(loop_scope="module")]

LONG = 400  # tokens to generate: they take a while
PROMPT = random.Random(4).choices(range(3, 131), k=70)  # three steps of 32 tokens


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(llama: TinyLlama) -> AsyncIterator[EngineClient]:
    async with running_engine(engine_options(llama.path, max_num_seqs=2, max_model_len=512)) as client:
        yield client


def request(name: str, prompt: list[int], max_tokens: int, **more: Any) -> Submit:
    return msgspec.structs.replace(submit(name, prompt, max_tokens), **more)


async def finished(client: EngineClient, submission: Submit) -> tuple[list[int], Output]:
    """All tokens, and the last output."""
    outputs = [output async for output in await client.submit(submission)]
    return [token for output in outputs for token in output.token_ids], outputs[-1]


def journey(output: Output) -> Journey:
    assert output.journey is not None, output
    return output.journey


def idle(state: EngineState) -> bool:
    load = state.load
    return (load.running_requests, load.waiting_requests) == (0, 0) and load.kv_blocks_free == load.kv_blocks_total


async def test_a_prefix_hit_gives_the_same_tokens_and_reports_them(engine: EngineClient, llama: TinyLlama) -> None:
    expected = greedy(llama.oracle, PROMPT, 12)
    before = (await engine.state()).load
    cold, last = await finished(engine, request("cold", PROMPT, 12))
    assert (cold, journey(last).cached_tokens) == (expected, 0)
    assert sum(journey(last).gear_tokens.values()) == 70 + 11
    hot, last = await finished(engine, request("hot", PROMPT, 12))
    assert (hot, journey(last).cached_tokens) == (expected, 68)
    assert sum(journey(last).gear_tokens.values()) == 2 + 11
    longer, last = await finished(engine, request("longer", PROMPT + expected, 5))
    assert (longer, journey(last).cached_tokens) == (greedy(llama.oracle, PROMPT + expected, 5), 80)
    load = (await until(engine, idle)).load
    assert load.prefix_queried_tokens - before.prefix_queried_tokens == 70 + 70 + 82
    assert load.prefix_hit_tokens - before.prefix_hit_tokens == 68 + 80
    assert 0 < load.kv_blocks_cached < load.kv_blocks_total


async def test_another_tenant_hits_nothing(engine: EngineClient, llama: TinyLlama) -> None:
    prompt = PROMPT[::-1]
    for name, tenant, cached in (("a", "x", 0), ("b", "y", 0), ("c", "x", 68), ("d", "", 0)):
        tokens, last = await finished(engine, request(name, prompt, 3, tenant=tenant))
        assert journey(last).cached_tokens == cached, (name, tenant)
        assert tokens == greedy(llama.oracle, prompt, 3)


async def test_siblings_compute_the_prompt_once(engine: EngineClient, llama: TinyLlama) -> None:
    prompt = PROMPT[5:] + PROMPT[:5]
    first = request("n-0", prompt, 6)
    others = [request(f"n-{i}", prompt, 6, shares_prompt_with="n-0") for i in range(1, 4)]
    results = await asyncio.gather(*(finished(engine, submission) for submission in (first, *others)))
    assert [tokens for tokens, _ in results] == [greedy(llama.oracle, prompt, 6)] * 4
    assert [journey(last).cached_tokens for _, last in results] == [0, 68, 68, 68]


async def test_a_sibling_runs_alone_after_its_leader_was_aborted(engine: EngineClient, llama: TinyLlama) -> None:
    blockers = [await engine.submit(request(f"blocker-{i}", PROMPT[i : i + 5], LONG)) for i in range(2)]
    leader = await engine.submit(request("leader", PROMPT[9:40], 4))
    sibling = asyncio.create_task(finished(engine, request("sibling", PROMPT[9:40], 4, shares_prompt_with="leader")))
    await until(engine, lambda s: s.load.waiting_requests == 2)
    for name in ("leader", "blocker-0", "blocker-1"):
        engine.abort(name)
    tokens, last = await sibling
    assert tokens == greedy(llama.oracle, PROMPT[9:40], 4)
    assert journey(last).cached_tokens == 0
    for outputs in (leader, *blockers):
        assert [output.finish async for output in outputs][-1] is Finish.ABORT
    await until(engine, idle)


async def test_a_deadline_ends_a_running_request_and_frees_its_blocks(engine: EngineClient) -> None:
    tokens, last = await finished(engine, request("running", PROMPT[:9], LONG, timeout_seconds=0.5))
    assert last.finish is Finish.DEADLINE
    assert last.token_ids == ()
    assert 0 < len(tokens) < LONG
    computed = sum(journey(last).gear_tokens.values()) + journey(last).cached_tokens
    assert computed == 9 + len(tokens) - 1
    await until(engine, idle, seconds=1.0)


async def test_a_deadline_ends_a_waiting_request(engine: EngineClient) -> None:
    blockers = [await engine.submit(request(f"wall-{i}", PROMPT[i : i + 6], LONG)) for i in range(2)]
    await until(engine, lambda s: s.load.running_requests == 2)
    tokens, last = await finished(engine, request("waiting", PROMPT[:9], 4, timeout_seconds=0.3))
    assert (tokens, last.finish) == ([], Finish.DEADLINE)
    assert journey(last).gear_tokens == {}
    assert 0.3 <= journey(last).queue_seconds < 5.0
    for i, outputs in enumerate(blockers):
        engine.abort(f"wall-{i}")
        assert [output.finish async for output in outputs][-1] is Finish.ABORT
    await until(engine, idle)


async def test_a_passed_deadline_is_refused(engine: EngineClient) -> None:
    with pytest.raises(RequestRefused, match=r"the deadline passed 1\.5 s before the request arrived") as caught:
        await engine.submit(request("late", PROMPT, 4, timeout_seconds=-1.5))
    assert caught.value.reason == "DeadlineExceeded"


async def test_the_more_important_begin_first(engine: EngineClient) -> None:
    blockers = [await engine.submit(request(f"block-{i}", PROMPT[i : i + 7], LONG)) for i in range(2)]
    await until(engine, lambda s: s.load.running_requests == 2)
    ended: list[str] = []

    async def run(name: str, priority: int) -> None:
        await finished(engine, request(name, PROMPT[20:30], 3, priority=priority))
        ended.append(name)

    tasks = [asyncio.create_task(run(*case)) for case in (("low", 7), ("middle", 0), ("high", -3))]
    await until(engine, lambda s: s.load.waiting_requests == 3)
    engine.abort("block-0")  # one place: they run one after the other
    await asyncio.gather(*tasks)
    assert ended == ["high", "middle", "low"]
    engine.abort("block-1")
    for outputs in blockers:
        assert [output.finish async for output in outputs][-1] is Finish.ABORT


async def test_without_a_prefix_cache_prompts_are_computed_whole(llama: TinyLlama) -> None:
    async with running_engine(engine_options(llama.path, max_model_len=512, prefix_cache=False)) as client:
        for name in ("one", "two"):
            tokens, last = await finished(client, request(name, PROMPT, 4))
            assert tokens == greedy(llama.oracle, PROMPT, 4)
            assert journey(last).cached_tokens == 0
        load = (await until(client, idle)).load
        assert (load.prefix_queried_tokens, load.kv_blocks_cached) == (0, 0)
