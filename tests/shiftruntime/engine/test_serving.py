"""A real engine with two ranks serves requests: tokens, gears, queue, aborts, policy, calibration."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from helpers.engines import collect, engine_options, generate, greedy, running_engine, submit, until
from shiftcore.policy import Mode, Policy
from shiftruntime.engine.client import EngineClient, PolicyRefused, RequestRefused
from shiftruntime.engine.messages import EngineState, Finish

from .conftest import TinyLlama

pytestmark = [pytest.mark.ranks, pytest.mark.asyncio(loop_scope="module")]

THRESHOLD = 8
MAX_NUM_SEQS = 3  # no multiple of the sequence degree
MAX_WAITING = 5
LONG = 480  # tokens to generate: more than a second
PROMPTS = [random.Random(length).choices(range(3, 131), k=length) for length in (5, 40, 70, 21, 9)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(llama: TinyLlama) -> AsyncIterator[EngineClient]:
    options = engine_options(
        llama.path, max_num_seqs=MAX_NUM_SEQS, max_waiting_requests=MAX_WAITING, max_model_len=512,
        policy=Policy(threshold_tokens=THRESHOLD),
    )  # fmt: skip
    async with running_engine(options) as client:
        yield client


@pytest.fixture(scope="module")
def expected(llama: TinyLlama) -> list[list[int]]:
    return [greedy(llama.oracle, prompt, 12) for prompt in PROMPTS]


def steps(state: EngineState) -> dict[str, int]:
    return {gear.name: gear.steps for gear in state.gears}


def idle(state: EngineState) -> bool:
    load = state.load
    return (load.running_requests, load.waiting_requests) == (0, 0) and load.kv_blocks_free == load.kv_blocks_total


async def test_tokens_are_those_of_hugging_face_while_both_gears_work(
    engine: EngineClient, expected: list[list[int]]
) -> None:
    before = await engine.state()
    for i, prompt in enumerate(PROMPTS):
        assert await generate(engine, submit(f"alone-{i}", prompt, 12)) == expected[i], f"prompt {i}"
    after = await until(engine, idle)
    ran = {name: n - steps(before)[name] for name, n in steps(after).items()}
    # Prompts of 5 | 32 + 8 | 32 + 32 + 6 | 21 | 9 tokens: sp2 beyond the threshold; all decodes tp2.
    assert ran == {"sp2": 0 + 1 + 2 + 1 + 1, "tp2": 1 + 1 + 1 + 5 * 11}, ran
    assert after.shifts - before.shifts >= 2 * 4 - 1
    assert (after.threshold_tokens, after.threshold_source) == (THRESHOLD, "Policy")


async def test_neighbours_do_not_change_greedy_tokens(engine: EngineClient, expected: list[list[int]]) -> None:
    """More requests than sequences in a batch: some wait, prefills and decodes mix, batches of 3 are padded in sp2."""
    results = await asyncio.gather(
        *(generate(engine, submit(f"together-{i}", prompt, 12)) for i, prompt in enumerate(PROMPTS))
    )
    assert results == expected


async def test_a_batch_of_three_runs_in_sp2(engine: EngineClient, expected: list[list[int]]) -> None:
    current = (await engine.state()).policy
    await engine.set_policy(Policy(Mode.THROUGHPUT, generation=current.generation + 1))
    before = steps(await engine.state())
    results = await asyncio.gather(
        *(generate(engine, submit(f"padded-{i}", PROMPTS[i], 12)) for i in range(MAX_NUM_SEQS))
    )
    after = steps(await engine.state())
    await engine.set_policy(Policy(threshold_tokens=THRESHOLD, generation=current.generation + 2))
    assert results == expected[:MAX_NUM_SEQS]
    assert after["tp2"] == before["tp2"]
    assert after["sp2"] > before["sp2"]


async def test_a_stop_token_ends_a_request_and_logprobs_come_when_asked(
    engine: EngineClient, expected: list[list[int]]
) -> None:
    stop = expected[1][4]
    first = expected[1].index(stop)
    request = submit("stopped", PROMPTS[1], 12, stop_token_ids=(stop,), logprobs=True)
    outputs = [output async for output in await engine.submit(request)]
    assert [t for output in outputs for t in output.token_ids] == expected[1][: first + 1]
    assert [output.finish for output in outputs] == [None] * first + [Finish.STOP]
    assert all(len(output.logprobs) == 1 and output.logprobs[0] <= 0 for output in outputs)


async def test_an_aborted_running_request_frees_its_blocks(engine: EngineClient) -> None:
    outputs = await engine.submit(submit("running", PROMPTS[0], LONG))
    got = [await anext(outputs), await anext(outputs)]
    assert (await engine.state()).load.kv_blocks_free < (await engine.state()).load.kv_blocks_total
    engine.abort("running")
    got += [output async for output in outputs]
    assert [output.finish for output in got[:-1]] == [None] * (len(got) - 1)
    assert got[-1].finish is Finish.ABORT
    assert len(got) < LONG
    await until(engine, idle, seconds=1.0)
    engine.abort("running")  # ended: nothing happens
    assert idle(await engine.state())


async def test_an_aborted_waiting_request_leaves_the_queue(engine: EngineClient) -> None:
    running = [await engine.submit(submit(f"first-{i}", PROMPTS[i], LONG - 80)) for i in range(MAX_NUM_SEQS)]
    waiting = await engine.submit(submit("waiting", PROMPTS[0], 4))
    await until(engine, lambda s: (s.load.running_requests, s.load.waiting_requests) == (MAX_NUM_SEQS, 1))
    engine.abort("waiting")
    last = [output async for output in waiting]
    assert [(output.token_ids, output.finish) for output in last] == [((), Finish.ABORT)]
    assert (await engine.state()).load.waiting_requests == 0
    for i, outputs in enumerate(running):
        engine.abort(f"first-{i}")
        await collect(outputs)
    await until(engine, idle, seconds=1.0)


async def test_refusals_say_why_and_harm_nobody(engine: EngineClient, expected: list[list[int]]) -> None:
    running = [await engine.submit(submit(f"long-{i}", PROMPTS[i], LONG - 80)) for i in range(MAX_NUM_SEQS)]
    await until(engine, lambda s: s.load.running_requests == MAX_NUM_SEQS)
    queued = [await engine.submit(submit(f"queued-{i}", prompt, 12)) for i, prompt in enumerate(PROMPTS)]
    with pytest.raises(RequestRefused, match=f"{MAX_WAITING} requests wait, the limit is {MAX_WAITING}") as caught:
        await engine.submit(submit("late", PROMPTS[0], 4))
    assert caught.value.reason == "QueueFull"
    with pytest.raises(RequestRefused, match="long-0 is in flight") as caught:
        await engine.submit(submit("long-0", PROMPTS[0], 4))
    assert caught.value.reason == "DuplicateRequest"
    with pytest.raises(RequestRefused, match="5 prompt tokens and 508 to generate exceed the 512") as caught:
        await engine.submit(submit("endless", PROMPTS[0], 508))
    assert caught.value.reason == "InvalidRequest"
    with pytest.raises(PolicyRefused, match="3 requests run") as busy:
        await engine.calibrate()
    assert busy.value.kind == "Busy"
    for i, outputs in enumerate(running):
        engine.abort(f"long-{i}")
        await collect(outputs)
    assert [await collect(outputs) for outputs in queued] == expected
    await until(engine, idle)


async def test_a_policy_is_applied_by_an_idle_engine_within_a_second(engine: EngineClient) -> None:
    generation = (await engine.state()).policy.generation + 10
    latency = Policy(Mode.LATENCY, generation=generation)
    started = time.monotonic()
    accepted = await engine.set_policy(latency)
    assert accepted.policy == latency
    await until(engine, lambda s: s.generation_applied == generation, seconds=1.0)
    assert time.monotonic() - started <= 1.0
    assert (await engine.set_policy(latency)).policy == latency  # the same again changes nothing
    for kind, sentence, policy in (
        ("StaleGeneration", f"{generation - 1} is older than {generation}", Policy(generation=generation - 1)),
        ("InvalidPolicy", f"{generation} was accepted with another", Policy(generation=generation)),
        ("InvalidPolicy", "gear tp4 is not one of tp2, sp2", Policy(gear="tp4", generation=generation + 1)),
    ):
        with pytest.raises(PolicyRefused, match=sentence) as caught:
            await engine.set_policy(policy)
        assert caught.value.kind == kind
    state = await engine.set_policy(Policy(threshold_tokens=THRESHOLD, generation=generation + 1))
    assert state.threshold_tokens == THRESHOLD


async def test_a_policy_is_applied_at_a_step_boundary_under_load(engine: EngineClient, llama: TinyLlama) -> None:
    generation = (await engine.state()).policy.generation
    outputs = await engine.submit(submit("shifting", PROMPTS[0], 60))
    got = list((await anext(outputs)).token_ids)
    for mode, gear in ((Mode.THROUGHPUT, "sp2"), (Mode.LATENCY, "tp2")):
        generation += 1
        before = steps(await engine.set_policy(Policy(mode, generation=generation)))
        for _ in range(5):
            got += (await anext(outputs)).token_ids
        state = await engine.state()
        assert state.generation_applied == generation
        assert steps(state)[gear] > before[gear]
    got += await collect(outputs)
    await engine.set_policy(Policy(threshold_tokens=THRESHOLD, generation=generation + 1))
    assert got == greedy(llama.oracle, PROMPTS[0], 60), "shifts in the middle of a sequence change nothing"


async def test_calibration_on_demand(engine: EngineClient, expected: list[list[int]]) -> None:
    assert (await engine.state()).crossover_reason == "NotCalibrated"
    state = await engine.calibrate()
    for gear in state.gears:
        assert [point.tokens for point in gear.costs] == [1, 2, 4, 8, 16, 32]
        assert all(point.median_seconds > 0 and point.samples >= 3 for point in gear.costs)
        assert gear.capacity_tokens_per_second > 0
    assert (state.crossover_tokens is not None) == (state.crossover_reason == "")
    assert state.crossover_message
    assert await generate(engine, submit("calibrated", PROMPTS[2], 12)) == expected[2]
