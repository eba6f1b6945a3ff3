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
from shiftruntime.engine.client import EngineClient, EngineFailed
from shiftruntime.engine.messages import Abort, Admitted, Finish, Output, PhaseUpdate, Ready, Sampling, Submit
from shiftruntime.engine.options import EngineOptions
from shiftruntime.worker.frames import pack

READY = Ready("llama", "float32", 64, 131, 63, ("tp1",))
SUBMIT = Submit("a", (5, 6), Sampling(temperature=0.0, top_p=1.0, seed=0, max_tokens=4))


class Engine:
    """Says what the test tells it to."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def say(self, *messages: msgspec.Struct) -> None:
        for message in messages:
            self._writer.write(pack(message))
        await self._writer.drain()


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
        _, writer = await asyncio.open_connection(sock=theirs[0])
        engine = Engine(writer)
        await engine.say(READY)
        await starting
    try:
        yield client, engine
    finally:
        await client.stop(1.0)
        writer.close()


async def submit(client: EngineClient, engine: Engine) -> AsyncIterator[Output]:
    pending = asyncio.create_task(client.submit(SUBMIT))
    await asyncio.sleep(0)
    await engine.say(Admitted("a"))
    return await asyncio.wait_for(pending, 5)


async def test_outputs_of_an_aborted_request_do_not_reach_the_next_with_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        pending = asyncio.create_task(client.submit(SUBMIT))
        await asyncio.sleep(0)
        # What an earlier request of this id had under way when it was aborted; then the new one is admitted.
        await engine.say(Output("a", (9,)), Output("a", (), finish=Finish.ABORT), Admitted("a"))
        outputs = await asyncio.wait_for(pending, 5)
        await engine.say(Output("a", (7,), finish=Finish.STOP))
        async with asyncio.timeout(5):
            assert [output.token_ids async for output in outputs] == [(7,)]


async def test_an_id_is_free_after_a_call_that_never_read_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        abandoned = await submit(client, engine)
        client.abort("a")
        await engine.say(Output("a", (), finish=Finish.ABORT))
        del abandoned
        await client_has_read(client, engine)
        again = await submit(client, engine)
        await engine.say(Output("a", (3,), finish=Finish.LENGTH))
        async with asyncio.timeout(5):
            assert [output.token_ids async for output in again] == [(3,)]


async def client_has_read(client: EngineClient, engine: Engine) -> None:
    """What was said before has been handled when this phase arrives."""
    seen = asyncio.Event()
    client._on_phase = lambda _: seen.set()
    await engine.say(PhaseUpdate("load", 0.0))
    await asyncio.wait_for(seen.wait(), 5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_error_of_our_own_in_the_reader_ends_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (client, engine):
        outputs = await submit(client, engine)

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
