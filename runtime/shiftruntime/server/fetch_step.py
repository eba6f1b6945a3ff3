"""`shift-runtime fetch`: at a terminal, or as the step before `serve` in a pod, which tells the operator of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from time import monotonic
from typing import Any, NoReturn, TypeAlias

import grpc
from prometheus_client import CollectorRegistry
from shiftprotos.v1 import control_pb2 as pb
from shiftprotos.v1 import control_pb2_grpc

from shiftruntime import log as logs
from shiftruntime.errors import StartupError, fetch_failed
from shiftruntime.metrics import RequestMetrics
from shiftruntime.models.fetch import fetch_model
from shiftruntime.server import termination
from shiftruntime.server.cli_limits import DEFAULTS as DEFAULT_LIMITS
from shiftruntime.server.control_listener import bind, control_server, control_tls
from shiftruntime.server.fetch_cli import FetchOptions
from shiftruntime.server.fetching import STALL_SECONDS, cache_folder, fetched
from shiftruntime.server.lifecycle import Lifecycle
from shiftruntime.server.signals import signals
from shiftruntime.server.wire import phases_to_wire

log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_SHOW_SECONDS = 0.5
_CLOSE_SECONDS = 0.2


def command(options: FetchOptions, on_port: Callable[[int], None] = lambda port: None) -> int:
    """Prints the path. Exit code: 0, or 1 for a failure, which is left in the termination log too."""
    try:
        if options.control_port is None:
            folder, show = cache_folder(options.cache), partial(_show, [0.0])
            path = str(fetch_model(options.uri, folder, show, None, options.limit_bytes))
        else:
            logs.setup(options.log_format, options.environment.pod_name, level=options.log_level.number)
            path = asyncio.run(_step(options, on_port))
    except StartupError as error:
        print(f"shift-runtime: {error.reason}: {error.message}", file=sys.stderr)
        termination.write(options.environment.termination_log, error.reason, error.message)
        return 1
    print(path)
    return 0


async def _step(options: FetchOptions, on_port: Callable[[int], None]) -> str:
    """The path; raises StartupError, also when a signal came first."""
    lifecycle = Lifecycle(RequestMetrics(CollectorRegistry()))
    stop = asyncio.Event()
    with signals(stop.set):
        async with _listening(options, lifecycle, on_port):
            fetch = asyncio.create_task(
                fetched(options.uri, options.cache, lifecycle.phase, STALL_SECONDS, options.limit_bytes)
            )
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((fetch, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not fetch.done():
                fetch.cancel()
                await asyncio.wait((fetch,))
                raise fetch_failed(f"{options.uri}: stopped by a signal; start again, it resumes")
            return fetch.result()


@asynccontextmanager
async def _listening(
    options: FetchOptions, lifecycle: Lifecycle, on_port: Callable[[int], None]
) -> AsyncIterator[None]:
    """Raises StartupError when the token or the TLS files cannot be read, or the port is taken."""
    server, token = control_server(_Control(lifecycle), options.environment, DEFAULT_LIMITS)
    tls = control_tls(options.environment)
    host = options.host if token is not None else "127.0.0.1"
    on_port(bind(server, host, options.control_port or 0, "--control-port", tls))
    await server.start()
    try:
        yield
    finally:
        await server.stop(_CLOSE_SECONDS)


class _Control(control_pb2_grpc.ControlServicer):
    """Of shiftparallel.v1.Control what there is to say before there is an engine."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> pb.GetStateResponse:  # noqa: N802
        return pb.GetStateResponse(
            phases=phases_to_wire(self._lifecycle.phases.values()), version=version("shift-runtime")
        )

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> NoReturn:  # noqa: N802
        await self._lifecycle.refusal().end(context)

    async def Calibrate(self, request: pb.CalibrateRequest, context: Context) -> NoReturn:  # noqa: N802
        await self._lifecycle.refusal().end(context)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> NoReturn:  # noqa: N802
        await self._lifecycle.refusal().end(context)


def _show(last: list[float], done: int, total: int) -> None:
    if sys.stderr.isatty() and (monotonic() - last[0] > _SHOW_SECONDS or done == total):
        last[0] = monotonic()
        end = "\n" if done == total else ""
        print(f"\r{done >> 20} of {total >> 20} MiB", end=end, file=sys.stderr, flush=True)
