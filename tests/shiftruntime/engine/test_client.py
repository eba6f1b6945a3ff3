"""The front end's handle against a scripted engine on the other end of the socket: what arrives late or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from shiftcore.layout import Gear
from shiftruntime.engine.client import EngineClient, EngineFailed, RequestRefused
from shiftruntime.engine.messages import (
    Abort,
    Admitted,
    Finish,
    Output,
    PhaseUpdate,
    Ready,
    Refused,
    Sampling,
    Submit,
    ToEngine,
)
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.start_message import Start
from shiftruntime.worker.frames import FrameBuffer, pack

READY = Ready("llama", "float32", 64, 131, 63, ("tp1",))
SUBMIT = Submit("a", (5, 6), Sampling(temperature=0.0, top_p=1.0, seed=0, max_tokens=4))


class Engine:
    """Says what the test tells it to, and hears what the client says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._heard: list[object] = []
        self._buffer: FrameBuffer[object] = FrameBuffer(ToEngine | Start)

    async def say(self, *messages: msgspec.Struct) -> None:
        for message in messages:
            self._writer.write(pack(message))
        await self._writer.drain()

    async def heard(self, kind: type[Submit] | type[Abort]) -> str:
        """The id in the next message of this kind; others are skipped."""
        async with asyncio.timeout(5):
            while True:
                while self._heard:
                    message = self._heard.pop(0)
                    if isinstance(message, kind):
                        return message.request_id
                self._heard += self._buffer.feed(await self._reader.read(1 << 16))


@asynccontextmanager
async def connected(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[EngineClient, Engine]]:
    theirs: list[socket.socket] = []
    spawned = asyncio.Event()

    class Process:
        pid = os.getpid()

        async def wait(self) -> int:
            return 0

    async def spawn(*_: object, pass_fds: tuple[int, ...], **__: object) -> Process:
        theirs.append(socket.socket(fileno=socket.dup(pass_fds[0])))
        spawned.set()
        return Process()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    client = EngineClient(EngineOptions(model="none", ranks=1, base_gear=Gear(1, 1)))
    starting = asyncio.create_task(client.start(lambda _: None))
    async with asyncio.timeout(5):
        await spawned.wait()
        reader, writer = await asyncio.open_connection(sock=theirs[0])
        engine = Engine(reader, writer)
        await engine.say(READY)
        await starting
    try:
        yield client, engine
    finally:
        await client.stop(1.0)
        writer.close()


async def submit(client: EngineClient, engine: Engine, name: str = "a") -> tuple[str, AsyncIterator[Output]]:
    """(the engine's id, its outputs) of an admitted request."""
    pending, engine_id = await asking(client, engine, name)
    await engine.say(Admitted(engine_id))
    return engine_id, await asyncio.wait_for(pending, 5)


async def asking(
    client: EngineClient, engine: Engine, name: str = "a"
) -> tuple[asyncio.Task[AsyncIterator[Output]], str]:
    """A request that waits for its admission, and its id in the engine."""
    pending = asyncio.create_task(client.submit(msgspec.structs.replace(SUBMIT, request_id=name)))
    return pending, await engine.heard(Submit)


async def tokens(outputs: AsyncIterator[Output]) -> list[tuple[int, ...]]:
    async with asyncio.timeout(5):
        return [output.token_ids async for output in outputs]


LATE = {
    "admitted and aborted": lambda old: (Admitted(old), Output(old, (), finish=Finish.ABORT)),
    "aborted": lambda old: (Output(old, (9,)), Output(old, (), finish=Finish.ABORT)),
    "refused": lambda old: (Refused(old, "Aborted", "aborted while its grammar was compiled"),),
}


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("order", ["before the admission", "after the admission", "on both sides"])
async def test_the_last_words_about_a_request_never_meet_the_next_with_its_id(
    monkeypatch: pytest.MonkeyPatch, late: str, order: str
) -> None:
    async with connected(monkeypatch) as (client, engine):
        left, old = await asking(client, engine)
        left.cancel()  # its client left before it was admitted
        assert await engine.heard(Abort) == old
        pending, new = await asking(client, engine)
        words = LATE[late](old)
        cut = {"before the admission": len(words), "after the admission": 0, "on both sides": 1}[order]
        await engine.say(*words[:cut], Admitted(new), *words[cut:])
        outputs = await asyncio.wait_for(pending, 5)
        await engine.say(Output(new, (7,), finish=Finish.STOP))
        assert await tokens(outputs) == [(7,)]


async def test_a_late_admission_of_a_left_request_does_not_admit_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        left, old = await asking(client, engine)
        left.cancel()
        pending, new = await asking(client, engine)
        await engine.say(Admitted(old), Refused(new, "QueueFull", "no room"))
        with pytest.raises(RequestRefused, match="no room"):
            await asyncio.wait_for(pending, 5)


async def test_a_submit_that_ends_late_leaves_the_next_with_its_id_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        first, old = await asking(client, engine)
        client.abort("a")
        second, new = await asking(client, engine)
        await engine.say(Refused(old, "Aborted", "aborted"))
        with pytest.raises(RequestRefused, match="aborted"):
            await asyncio.wait_for(first, 5)
        await engine.say(Admitted(new), Output(new, (7,), finish=Finish.STOP))
        assert await tokens(await asyncio.wait_for(second, 5)) == [(7,)]


async def test_an_abort_ends_the_request_that_has_the_id_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        old, _ = await submit(client, engine)
        client.abort("a")
        assert await engine.heard(Abort) == old
        new, _ = await submit(client, engine)
        assert new != old
        client.abort("a")
        assert await engine.heard(Abort) == new


async def test_an_id_is_refused_while_it_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        await submit(client, engine)
        with pytest.raises(RequestRefused, match="request a is in flight"):
            await client.submit(SUBMIT)


async def test_a_sibling_names_its_leader_as_the_engine_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        leader, _ = await submit(client, engine)
        sibling = msgspec.structs.replace(SUBMIT, request_id="a/1", shares_prompt_with="a")
        message, _ = client._requests.enter(sibling)
        assert message.shares_prompt_with == leader


async def test_an_id_is_free_after_a_call_that_never_read_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        engine_id, abandoned = await submit(client, engine)
        await engine.say(Output(engine_id, (), finish=Finish.LENGTH))
        del abandoned
        await client_has_read(client, engine)
        engine_id, again = await submit(client, engine)
        await engine.say(Output(engine_id, (3,), finish=Finish.LENGTH))
        assert await tokens(again) == [(3,)]


async def client_has_read(client: EngineClient, engine: Engine) -> None:
    """What was said before has been handled when this phase arrives."""
    seen = asyncio.Event()
    client._on_phase = lambda _: seen.set()
    await engine.say(PhaseUpdate("load", 0.0))
    await asyncio.wait_for(seen.wait(), 5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_error_of_our_own_in_the_reader_ends_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        _, outputs = await submit(client, engine)

        def broken(_: PhaseUpdate) -> None:
            raise ValueError("a bug")

        client._on_phase = broken
        await engine.say(PhaseUpdate("load", 0.0))
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(anext(outputs), 5)
        assert client.failed.done()
        assert client._reader_task is not None
        with contextlib.suppress(ValueError):
            await client._reader_task
        client._reader_task = None


def test_messages_are_packed_with_their_length() -> None:
    frame = pack(Abort("a"))
    assert int.from_bytes(frame[:4], "little") == len(frame) - 4
