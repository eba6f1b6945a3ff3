"""/livez, /readyz and /metrics over plain HTTP/1.1: three fixed answers, in the event loop on purpose.

A loop that is stuck then fails its liveness probe. Nothing of a request is used but its path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from shiftruntime.server.lifecycle import Lifecycle

log = logging.getLogger(__name__)

HEAD_SECONDS = 1.0  # a probe speaks at once
REQUEST_SECONDS = 5.0
MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 64


@dataclass(frozen=True)
class Reply:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[Mapping[str, str]], Reply]


def routes(lifecycle: Lifecycle, registry: CollectorRegistry) -> dict[str, Route]:
    """Path to answer; an answer gets the request's headers in lower case."""

    def livez(headers: Mapping[str, str]) -> Reply:
        return Reply(HTTPStatus.OK, b"alive\n")

    def readyz(headers: Mapping[str, str]) -> Reply:
        status = HTTPStatus.OK if lifecycle.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Reply(status, f"{lifecycle.sentence()}\n".encode())

    def metrics(headers: Mapping[str, str]) -> Reply:
        encode, content_type = choose_encoder(headers.get("accept", ""))
        return Reply(HTTPStatus.OK, encode(registry), content_type)

    return {"/livez": livez, "/readyz": readyz, "/metrics": metrics}


class OpsServer:
    """One answer per connection, each with a deadline."""

    def __init__(self, paths: Mapping[str, Route]) -> None:
        self._paths = paths
        self._server: asyncio.Server | None = None
        self._silent: dict[asyncio.StreamWriter, None] = {}  # in order of arrival, as the next
        self._answered: dict[asyncio.StreamWriter, None] = {}

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when it is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), REQUEST_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._make_room()
        self._silent[writer] = None
        writer.transport.set_write_buffer_limits(high=0)  # an answer is over when it was taken
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            self._answered[writer] = self._silent.pop(writer)
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._answer(head.decode("latin-1"), writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("ops connection ended: %r", error)
            writer.transport.abort()  # to close it would wait for a client that reads nothing
        finally:
            self._silent.pop(writer, None)
            self._answered.pop(writer, None)
            writer.close()

    def _make_room(self) -> None:
        """Connections that say, or read, nothing give way: a probe that came last must not fail because of them."""
        if len(self._silent) + len(self._answered) >= MAX_CONNECTIONS:
            oldest = self._silent or self._answered
            writer = next(iter(oldest))
            del oldest[writer]
            writer.transport.abort()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        request_line, *lines = head.split("\r\n")
        method, target, _ = [*request_line.split(" "), "", "", ""][:3]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        reply = self._reply(method, target.partition("?")[0], headers)
        body = b"" if method == "HEAD" else reply.body
        writer.write(
            f"HTTP/1.1 {reply.status.value} {reply.status.phrase}\r\nContent-Type: {reply.content_type}\r\n"
            f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n".encode("latin-1")
            + body
        )
        await writer.drain()

    def _reply(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        if method not in ("GET", "HEAD"):
            return Reply(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n")
        route = self._paths.get(path)
        if route is None:
            return Reply(HTTPStatus.NOT_FOUND, f"no such path; there are {', '.join(self._paths)}\n".encode())
        return route(headers)
