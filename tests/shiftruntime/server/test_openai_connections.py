"""Connections to the OpenAI port: clients that leave, many at once, one too many, and the drain."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from shiftruntime.server.openai import listener

from .openai_calls import client_of, raw
from .waiting import eventually


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_request(pod, stream):
    pod.engine.flow.clear()
    body = json.dumps({"prompt": "x", "stream": stream, "n": 2}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.openai)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await eventually(lambda: len(pod.engine.running) == 2)
    if stream:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await eventually(lambda: len(pod.engine.aborted) == 2)
    await eventually(lambda: not pod.engine.running)


async def test_fifty_clients_at_once_get_their_own_answers(pod):
    async with client_of(pod) as client:

        async def one(number: int) -> int:
            stream = await client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": str(number)}],
                max_tokens=number % 11 + 1,
                stream=True,
            )
            return len("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

        lengths = await asyncio.gather(*(one(number) for number in range(50)))
    assert lengths == [number % 11 + 1 for number in range(50)]
    assert {bytes(submit.prompt) for submit in pod.engine.submitted} == {b"u:%d|" % number for number in range(50)}


async def test_a_drain_lets_streams_end_and_takes_no_new_ones(pod):
    async with client_of(pod) as client, client_of(pod) as other:
        pod.engine.flow.clear()
        stream = await client.completions.create(model="fake", prompt="x", max_tokens=40, stream=True)
        await other.models.list()
        pod.terminate()
        await eventually(lambda: pod.engine.draining)
        with pytest.raises(openai.InternalServerError, match="drains") as caught:
            await other.completions.create(model="fake", prompt="y")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["connection"] == "close"
        pod.engine.flow.set()
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "hello world"
    assert await pod.exit_code() == 0


async def test_a_drain_closes_connections_that_are_idle(pod):
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.openai)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")
    pod.engine.flow.clear()
    holder = asyncio.create_task(raw(pod, "POST", "/v1/completions", {"prompt": "x"}))
    await eventually(lambda: pod.engine.running)
    pod.terminate()
    assert await asyncio.wait_for(reader.read(), 5) == b"", "closed while a request still runs"
    assert not holder.done()
    pod.engine.flow.set()
    assert (await holder)[0] == 200
    writer.close()


async def test_a_stream_that_outlives_the_drain_ends_with_the_reason(start_pod):
    pod = await start_pod(drain_seconds=0.3)
    async with client_of(pod) as client:
        pod.engine.flow.clear()
        stream = await client.completions.create(model="fake", prompt="x", stream=True)
        pod.terminate()
        with pytest.raises(openai.APIError, match=r"drained for 0\.3 s"):
            async for _ in stream:
                pass
    assert await pod.exit_code() == 0


async def test_a_connection_too_many_is_told(pod, monkeypatch):
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.openai)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in await reader.readline()
    status, headers, text = await raw(pod, "GET", "/health")
    assert (status, headers["Retry-After"], json.loads(text)["error"]["code"]) == (503, "1", "QueueFull")
    writer.close()
