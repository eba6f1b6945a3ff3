"""The socket of the OpenAI port: how many connections there may be, how long an idle one stays, how all of them end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from aiohttp import web

from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.openai.app import Handler, OpenAiRoutes
from shiftruntime.server.openai.auth import ApiKeys
from shiftruntime.server.openai.tls import ReloadingTls

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
IDLE_SECONDS = 75.0  # also the time for the first request of a connection
MAX_LINE_BYTES = 8190
CLOSE_SECONDS = 5.0
_FULL_BODY = b'{"error":{"message":"too many connections","type":"server_error","param":null,"code":"QueueFull"}}\n'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n" % len(_FULL_BODY)
)


def openai_server(frontend: FrontEnd) -> OpenAiServer:
    """Raises StartupError when the API keys or the TLS files cannot be read."""
    options = frontend.options
    keys = None if options.api_key_file is None else ApiKeys(options.api_key_file)
    tls = None if options.tls is None else ReloadingTls(options.tls)
    return OpenAiServer(OpenAiRoutes(frontend, keys).application(), options.limits.metadata_bytes, tls)


class OpenAiServer:
    """Listens for one application."""

    def __init__(self, application: web.Application, max_header_bytes: int, tls: ReloadingTls | None = None) -> None:
        self._tls = tls
        self._busy: set[web.RequestHandler] = set()
        application.middlewares.append(self._noted)
        self._runner = web.AppRunner(
            application,
            handler_cancellation=True,  # a client that left must not keep the engine busy
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=max_header_bytes,
            handle_signals=False,
            shutdown_timeout=CLOSE_SECONDS,
        )
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when it is taken."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        tls = None if self._tls is None else self._tls.context
        self._server = await loop.create_server(self._connection, host, port, ssl=tls)
        return int(self._server.sockets[0].getsockname()[1])

    def drain(self) -> None:
        """Close connections that are idle, and the others after their answer; new ones are still answered."""
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection in self._busy:
                connection.close()
            else:
                connection.force_close()

    @web.middleware
    async def _noted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Remember which connections have a request."""
        self._busy.add(request.protocol)
        try:
            return await handler(request)
        finally:
            self._busy.discard(request.protocol)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._runner.cleanup(), 2 * CLOSE_SECONDS)

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or len(server.connections) >= MAX_CONNECTIONS:
            return _Full()
        return server()


class _Full(asyncio.Protocol):
    """Says so and closes: a connection too many costs nothing else."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport), "a stream socket"
        transport.write(_FULL + _FULL_BODY)
        transport.close()
