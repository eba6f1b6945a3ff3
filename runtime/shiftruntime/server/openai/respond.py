"""An answer on its way: whole as JSON, or piece by piece as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any, Protocol

import msgspec
from aiohttp import web

from shiftruntime.server import deadlines
from shiftruntime.server.deadlines import Deadlines
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.openai.answers import Head, Usage, generate_all
from shiftruntime.server.openai.errors import HttpError
from shiftruntime.server.openai.protocol import StreamOptions
from shiftruntime.server.openai.requests import trace_headers
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request import Delta, Generation

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"

Json = dict[str, Any]


class Answer(Protocol):
    """Makes an answer out of deltas."""

    head: Head
    usage: Usage

    def add(self, prompt: int, delta: Delta) -> list[Json]:
        """Choices of the chunks that this delta makes."""
        ...

    def body(self) -> Json:
        """The whole answer, after the last delta."""
        ...


class EventStream:
    """Server-sent events of one answer; the headers go out with the acceptance of the request."""

    def __init__(self, request: web.Request, headers: Mapping[str, str]) -> None:
        self._request = request
        self.response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", **headers}
        )

    @property
    def started(self) -> bool:
        return self.response.prepared

    async def start(self) -> None:
        async with asyncio.timeout(deadlines.WRITE_SECONDS):
            await self.response.prepare(self._request)

    async def send(self, event: Json) -> None:
        await self._write(msgspec.json.encode(event))

    async def end(self) -> None:
        await self._write(b"[DONE]")
        async with asyncio.timeout(deadlines.WRITE_SECONDS):
            await self.response.write_eof()

    def cut(self) -> None:
        """End the connection without the end of the answer: what the client has is not whole."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(deadlines.WRITE_SECONDS):
            await self.response.write(b"data: " + data + b"\n\n")


def hold_little(request: web.Request) -> None:
    """What a write waits for is then that the client takes it, not that this process keeps it for the client."""
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=1)  # 0 means nothing useful to TLS


async def deliver(request: web.Request, response: web.Response) -> None:
    """Write a whole answer; the connection of a client that does not take it in time is cut."""
    try:
        async with asyncio.timeout(deadlines.WRITE_SECONDS):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        log.debug("client of %s %s reads nothing", request.method, request.path)
        if request.transport is not None:
            request.transport.abort()


async def whole(frontend: FrontEnd, generations: Sequence[Generation], answer: Answer) -> web.Response:
    """Raises HttpError."""
    try:
        async with aclosing(generate_all(frontend, generations, _unheard)) as deltas:
            async for prompt, delta in deltas:
                answer.usage.add(prompt, delta)
                answer.add(prompt, delta)
    except Refusal as refusal:
        raise HttpError.of(refusal) from refusal
    headers = {REQUEST_ID_HEADER: answer.head.id} | trace_headers(generations[0].trace)
    return json_response(answer.body(), headers=headers)


async def streamed(
    request: web.Request,
    frontend: FrontEnd,
    generations: Sequence[Generation],
    answer: Answer,
    options: StreamOptions,
) -> web.StreamResponse:
    """Raises HttpError up to acceptance; a later failure is an event, after which the stream ends."""
    stream = EventStream(request, {REQUEST_ID_HEADER: answer.head.id} | trace_headers(generations[0].trace))
    limit = Deadlines.of(generations[0], frontend.options.limits, monotonic())
    try:
        async with aclosing(generate_all(frontend, generations, stream.start)) as deltas:
            await _send_all(stream, deltas, answer, options, limit)
    except Refusal as refusal:
        if not stream.started:
            raise HttpError.of(refusal) from refusal
        with suppress(ConnectionError, TimeoutError):
            await stream.send(HttpError.of(refusal).body())
            await stream.end()
    except (ConnectionError, TimeoutError) as error:
        log.debug("client of %s left, or reads nothing: %r", answer.head.id, error)
        stream.cut()
    except Exception:
        if not stream.started:
            raise
        log.exception("%s failed after its answer began", answer.head.id)
        stream.cut()
    return stream.response


async def _send_all(
    stream: EventStream,
    deltas: AsyncGenerator[tuple[int, Delta], None],
    answer: Answer,
    options: StreamOptions,
    limit: Deadlines,
) -> None:
    """Raises TimeoutError when the client does not take an event in time."""
    unknown: Json = {"usage": None} if options.include_usage else {}
    async for prompt, delta in deltas:
        answer.usage.add(prompt, delta)
        for choice in answer.add(prompt, delta):
            running: Json = {"usage": answer.usage.body()} if options.continuous_usage_stats else unknown
            async with asyncio.timeout(limit.write_seconds):
                await stream.send(answer.head.chunk([choice], **running))
    last: Json = {"usage": answer.usage.body()} if options.include_usage else {}
    if last:
        await stream.send(answer.head.chunk([], **last, **answer.usage.shift()))
    await stream.end()


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json", headers=dict(headers or {})
    )


async def _unheard() -> None:
    pass
