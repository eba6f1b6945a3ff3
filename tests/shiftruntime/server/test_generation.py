"""The generation layer below every transport: choices, deadlines, echo, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

import grpc
import pytest
from shiftruntime.engine.client import EngineFailed, RequestRefused
from shiftruntime.engine.messages import Finish
from shiftruntime.log import TextFormatter
from shiftruntime.server.flights import Flights
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.generation import Delta, Generation, Options, abort, generate
from shiftruntime.server.refusal import Refusal

SECONDS = 10.0


@pytest.fixture
async def frontend(serve_options, fake_engine_class, fake_text) -> FrontEnd:
    engine = fake_engine_class(serve_options.engine)
    front = FrontEnd(serve_options, engine)
    front.started(await engine.start(lambda phase: None), fake_text)
    front.lifecycle.become_ready()
    return front


async def collect(frontend, generation) -> list[Delta]:
    async with asyncio.timeout(SECONDS), aclosing(generate(frontend, generation)) as deltas:
        return [delta async for delta in deltas]


async def refused(frontend, generation) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await collect(frontend, generation)
    return caught.value


def text_of(deltas, index=0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def nothing_left(frontend) -> bool:
    return len(frontend.flights) == 0 and not frontend.engine.running


async def test_each_choice_is_a_request_of_the_engine_that_shares_the_prompt(frontend):
    deltas = await collect(frontend, Generation("hi", Options(n=3, seed=7, max_tokens=4), request_id="r"))
    assert [(s.request_id, s.shares_prompt_with) for s in frontend.engine.submitted] == [
        ("r", ""), ("r/1", "r"), ("r/2", "r"),
    ]  # fmt: skip
    assert [s.sampling.seed for s in frontend.engine.submitted] == [7, 8, 9]
    assert [text_of(deltas, index) for index in range(3)] == ["hell"] * 3
    last = {delta.index: delta for delta in deltas if delta.finish is not None}
    assert {index: delta.finish for index, delta in last.items()} == dict.fromkeys(range(3), Finish.LENGTH)
    assert {delta.request_id for delta in deltas} == {"r"}
    assert nothing_left(frontend)


async def test_every_choice_stops_by_itself_and_the_last_delta_brings_the_usage(frontend):
    deltas = await collect(frontend, Generation("hi", Options(n=2, stop=("o",))))
    assert [text_of(deltas, index) for index in range(2)] == ["hell", "hell"]
    ends = [delta for delta in deltas if delta.finish is not None]
    assert [(end.finish, end.usage.completion_tokens) for end in ends] == [(Finish.STOP, 5)] * 2
    assert sorted(frontend.engine.aborted) == sorted(s.request_id for s in frontend.engine.submitted)


async def test_accepted_comes_once_and_before_the_first_delta(frontend):
    heard = []

    async def accepted():
        heard.append(len(frontend.engine.submitted))

    async with asyncio.timeout(SECONDS), aclosing(generate(frontend, Generation("hi", Options(n=2)), accepted)) as all_:
        async for _ in all_:
            assert heard == [2]
    assert heard == [2]


async def test_a_refused_sibling_refuses_the_request_and_ends_the_others(frontend, monkeypatch):
    submit = frontend.engine.submit

    async def full(request):
        if request.request_id == "r/1":
            raise RequestRefused("QueueFull", "256 requests wait, the limit is 256")
        return await submit(request)

    monkeypatch.setattr(frontend.engine, "submit", full)
    refusal = await refused(frontend, Generation("hi", Options(n=3), request_id="r"))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert frontend.engine.aborted == ["r"]
    assert len(frontend.flights) == 0


async def test_a_sibling_that_the_engine_never_answers_leaves_no_admitted_choice_running(frontend, monkeypatch):
    submit = frontend.engine.submit

    async def silent(request):
        if request.request_id == "r/1":
            raise EngineFailed("InternalError", "the engine did not admit a request within 15 s")
        return await submit(request)

    monkeypatch.setattr(frontend.engine, "submit", silent)
    refusal = await refused(frontend, Generation("hi", Options(n=2), request_id="r"))
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert "r" in frontend.engine.aborted
    assert len(frontend.flights) == 0


async def test_the_id_of_a_choice_is_taken_while_the_request_runs():
    flights = Flights()
    with flights.enter(("r", "r/1"), 0.0):
        with pytest.raises(Refusal, match="'r/1' is in flight"), flights.enter(("r/1",), 0.0):
            pass
        assert len(flights) == 1
    with flights.enter(("r/1",), 0.0):
        assert len(flights) == 1


async def test_a_reader_that_leaves_aborts_every_choice(frontend):
    async with aclosing(generate(frontend, Generation("hi", Options(n=2), request_id="r"))) as deltas:
        async for _ in deltas:
            break
    assert sorted(frontend.engine.aborted) == ["r", "r/1"]
    assert nothing_left(frontend)


async def test_a_cancelled_reader_aborts(frontend):
    frontend.engine.flow.clear()
    task = asyncio.create_task(collect(frontend, Generation("hi", request_id="r")))
    while not frontend.engine.running:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert frontend.engine.aborted == ["r"]
    assert nothing_left(frontend)


async def test_abort_by_the_request_ends_all_choices_and_by_a_choice_only_that(frontend):
    frontend.engine.flow.clear()
    task = asyncio.create_task(collect(frontend, Generation("hi", Options(n=3), request_id="r")))
    while len(frontend.engine.running) < 3:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.001)
    abort(frontend, "r/1")
    assert frontend.engine.aborted == ["r/1"]
    abort(frontend, "r")
    abort(frontend, "unknown")
    deltas = await task
    assert [delta.finish for delta in deltas] == [Finish.ABORT] * 3


async def test_abort_of_a_choice_before_admission_ends_only_that(frontend, monkeypatch):
    """As the engine does it: a choice whose grammar is compiled is refused, one on its way is never asked for."""
    submit, asked, go_on = frontend.engine.submit, asyncio.Event(), asyncio.Event()

    async def slow(request):
        if request.request_id == "r/1":
            asked.set()
            await go_on.wait()
            raise RequestRefused("Aborted", "aborted while its grammar was compiled")
        return await submit(request)

    monkeypatch.setattr(frontend.engine, "submit", slow)
    task = asyncio.create_task(collect(frontend, Generation("hi", Options(n=3), request_id="r")))
    await asyncio.wait_for(asked.wait(), SECONDS)
    abort(frontend, "r/1")
    abort(frontend, "r/2")
    go_on.set()
    ends = {delta.index: delta.finish for delta in await task if delta.finish is not None}
    assert ends == {0: Finish.STOP, 1: Finish.ABORT, 2: Finish.ABORT}
    assert [request.request_id for request in frontend.engine.submitted] == ["r"]


DRAINED = Refusal(grpc.StatusCode.UNAVAILABLE, "Draining", "the pod ends")


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (lambda frontend: abort(frontend, "r"), grpc.StatusCode.CANCELLED, "Aborted"),
        (lambda frontend: frontend.flights.interrupt(DRAINED), grpc.StatusCode.UNAVAILABLE, "Draining"),
        (lambda frontend: None, grpc.StatusCode.CANCELLED, "Aborted"),
    ],
)
async def test_a_request_that_ends_while_its_grammar_compiles_says_why(frontend, monkeypatch, end, code, reason):
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def compiling(request):
        asked.set()
        await go_on.wait()
        raise RequestRefused("Aborted", "aborted while its grammar was compiled")

    monkeypatch.setattr(frontend.engine, "submit", compiling)
    task = asyncio.create_task(refused(frontend, Generation("hi", request_id="r")))
    await asyncio.wait_for(asked.wait(), SECONDS)
    end(frontend)
    go_on.set()
    refusal = await task
    assert (refusal.code, refusal.reason) == (code, reason)


FORGED = "x\n2026-01-01T00:00:00.000Z ERROR   all is lost"


@pytest.mark.parametrize("name", [FORGED, "y" * 8_000_000])
async def test_a_name_neither_forges_a_log_line_nor_fills_the_log(frontend, caplog, name):
    caplog.set_level("INFO")
    object.__setattr__(frontend.options, "log_requests", True)
    await refused(frontend, Generation("hi", request_id=name, tenant=name))
    (record,) = caplog.records
    for text in (record.getMessage(), *map(str, record.fields.values())):
        assert len(text) < 400
        assert text.isprintable()


def test_a_log_line_is_one_line():
    record = logging.LogRecord("x", logging.INFO, "", 0, "a\nb\x1b[2Jc é", None, None)
    assert TextFormatter().format(record).endswith("a\\nb\\x1b[2Jc é")


async def test_a_deadline_ends_a_running_request(frontend):
    frontend.engine.flow.clear()
    refusal = await refused(frontend, Generation("hi", request_id="r", timeout_seconds=0.05))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineExceeded")
    assert frontend.engine.aborted == ["r"]
    assert 0 < frontend.engine.submitted[0].timeout_seconds <= 0.05
    assert nothing_left(frontend)


async def test_a_deadline_ends_a_request_that_nobody_admits(frontend, monkeypatch):
    async def never(request):
        await asyncio.sleep(SECONDS)

    monkeypatch.setattr(frontend.engine, "submit", never)
    refusal = await refused(frontend, Generation("hi", timeout_seconds=0.05))
    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(frontend.flights) == 0


@pytest.mark.parametrize("prompt", ["hé", tuple("hé".encode())])
async def test_echo_puts_the_prompt_in_front_of_each_choice(frontend, prompt):
    deltas = await collect(frontend, Generation(prompt, Options(n=2, max_tokens=2), echo=True))
    assert [text_of(deltas, index) for index in range(2)] == ["héhe", "héhe"]
    assert [delta.prompt_token_ids for delta in deltas if delta.prompt_token_ids] == [tuple("hé".encode())] * 2
    assert [i for delta in deltas if delta.index == 1 for i in delta.token_ids] == list(b"he")


async def test_a_prompt_can_be_scored_without_a_completion(frontend):
    deltas = await collect(frontend, Generation("hi", Options(max_tokens=0, prompt_logprobs=True), echo=True))
    assert frontend.engine.submitted[0].sampling.max_tokens == 1
    assert (text_of(deltas), [i for delta in deltas for i in delta.token_ids]) == ("hi", [])
    assert (deltas[-1].finish, deltas[-1].usage.completion_tokens) == (Finish.LENGTH, 0)


async def test_stop_strings_do_not_look_at_the_echoed_prompt(frontend):
    deltas = await collect(frontend, Generation("stop", Options(stop=("stop",)), echo=True))
    assert text_of(deltas) == "stophello world"
