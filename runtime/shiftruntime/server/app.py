"""One pod from its first port to its exit code: start, serve, drain or fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import grpc
from shiftprotos import contract

from shiftruntime.engine.client import EngineClient, EngineFailed
from shiftruntime.engine.options import EngineOptions
from shiftruntime.errors import StartupError
from shiftruntime.models.fetch import Reader
from shiftruntime.server import termination
from shiftruntime.server.engine_metrics import EngineCollector
from shiftruntime.server.fetching import cached, fetched
from shiftruntime.server.frontend import FrontEnd, TextLoader
from shiftruntime.server.listeners import Listeners, Ports
from shiftruntime.server.options import ServeOptions
from shiftruntime.server.readiness import Readiness
from shiftruntime.server.refusal import DRAINING, Refusal
from shiftruntime.server.report import failure_line, ready_lines
from shiftruntime.server.signals import signals
from shiftruntime.server.vllm_metrics import VllmEngineCollector

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1

STATE_POLL_SECONDS = 1.0
# After its end was decided, a stream has this long to write its status.
LAST_WORDS_SECONDS = 2.0
ENGINE_DRAIN_SECONDS = 5.0
# Until then new calls on old connections are refused with a reason; endpoints and DNS learn meanwhile.
GOAWAY_AFTER_SECONDS = 3.0
# A request that has ended here may still be on its way to a client; with none on its way, nothing waits for it.
CLOSE_SECONDS = 5.0
ENGINE_STOP_SECONDS = 5.0
# The engine keeps a deadline of its own and says which phase was late; this one catches a silent engine.
START_MARGIN_SECONDS = 10.0

EngineFactory = Callable[[EngineOptions], EngineClient]


async def serve(
    options: ServeOptions,
    make_engine: EngineFactory,
    load_text: TextLoader,
    on_ports: Callable[[Ports], None] = lambda ports: None,
) -> int:
    """Runs until SIGTERM, SIGINT or a failure; returns the exit code. A second signal ends the drain.

    ``on_ports`` learns what was bound, for ports given as 0.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    with signals(lambda: (hurry if stop.is_set() else stop).set()):
        try:
            frontend = FrontEnd(options, make_engine(options.engine))
            return await _Pod(frontend, load_text, stop, hurry).run(on_ports)
        except (StartupError, EngineFailed) as failure:
            log.error("%s", failure_line(failure), extra={"fields": {"reason": failure.reason}})
            termination.write(options.environment.termination_log, failure.reason, failure.message)
            return EXIT_FAILED


class _Pod:
    """The stages of one run, in order."""

    def __init__(self, frontend: FrontEnd, load_text: TextLoader, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        self._frontend = frontend
        self._load_text = load_text
        self._stop = stop
        self._hurry = hurry
        self._readiness = Readiness(frontend.lifecycle)
        self._reader = Reader()
        self._listeners = Listeners(frontend, self._readiness)

    async def run(self, on_ports: Callable[[Ports], None]) -> int:
        """Raises StartupError or EngineFailed when the pod cannot start or its engine ended."""
        await self._readiness.publish()
        poll: asyncio.Task[None] | None = None
        try:
            ports = await self._listeners.start()
            openai = "none" if ports.openai is None else ports.openai
            log.info(
                "listening: inference %d, control %d, ops %d, openai %s",
                ports.inference,
                ports.control,
                ports.ops,
                openai,
            )
            on_ports(ports)
            if not await self._start():
                return EXIT_OK
            await self._announce(ports)
            poll = asyncio.create_task(self._poll_state())
            await self._until_stopped()
            await self._drain()
            return EXIT_OK
        except EngineFailed as failure:
            await self._fail(failure)
            raise
        finally:
            if poll is not None:
                poll.cancel()
            await self._close()

    async def _start(self) -> bool:
        """Until the engine serves; False when a signal came first. Raises StartupError or EngineFailed."""
        loaded = asyncio.create_task(self._load())
        stopped = asyncio.create_task(self._stop.wait())
        either: set[asyncio.Future[Any]] = {loaded, stopped}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if loaded.done():
                loaded.result()
                return True
            log.info("stopped during start-up")
            return False
        finally:
            await _cancel(loaded, stopped)

    async def _load(self) -> None:
        """Raises StartupError or EngineFailed; a fetch ends by itself when it stands still."""
        options = self._frontend.options
        model = await self._model()
        seconds = options.engine.startup_timeout_seconds + START_MARGIN_SECONDS
        try:
            async with asyncio.timeout(seconds) as deadline:
                await self._open(model)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            late = f"not ready within {seconds:g} s; {self._frontend.lifecycle.sentence()}"
            raise StartupError(contract.REASON_START_TIMEOUT, late) from error

    async def _model(self) -> str:
        """Its path, kept from being taken away by other pods of the same cache."""
        options, report = self._frontend.options, self._frontend.lifecycle.phase
        uri, cache = options.engine.model, options.model_cache
        if not options.offline:
            return await fetched(uri, cache, report, reader=self._reader)
        return await cached(uri, cache, self._reader)

    async def _open(self, model: str) -> None:
        """The tokenizer first: a model that is not there is then refused before any process starts."""
        frontend = self._frontend
        text = await asyncio.to_thread(self._load_text, model)
        ready = await frontend.engine.start(frontend.lifecycle.phase, model)
        frontend.started(ready, text)

    async def _announce(self, ports: Ports) -> None:
        frontend = self._frontend
        try:
            state = await frontend.state()
        except Refusal as refusal:
            raise StartupError(contract.REASON_INTERNAL, refusal.message) from refusal
        frontend.registry.register(EngineCollector(lambda: frontend.last_state))
        frontend.registry.register(VllmEngineCollector(lambda: frontend.last_state, frontend.options.served_name))
        await self._readiness.become_ready()
        for line, fields in ready_lines(frontend.options, frontend.model.ready, state, ports):
            log.info("%s", line, extra={"fields": fields})

    async def _until_stopped(self) -> None:
        """Until a signal; raises EngineFailed when the engine ends by itself."""
        stopped = asyncio.create_task(self._stop.wait())
        either: set[asyncio.Future[Any]] = {stopped, self._frontend.engine.failed}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(stopped)
        self._raise_failure()

    def _raise_failure(self) -> None:
        failed = self._frontend.engine.failed
        if failed.done() and not failed.cancelled():
            raise failed.result()

    async def _drain(self) -> None:
        """No new requests; running ones have drain_seconds, then they end UNAVAILABLE."""
        frontend, seconds = self._frontend, self._frontend.options.drain_seconds
        deadline = monotonic() + seconds
        await self._readiness.drain()
        self._listeners.drain()
        log.info("draining: %d requests in flight have %g s to end", len(frontend.flights), seconds)
        with suppress(TimeoutError):  # the front end refuses new requests by itself as well
            await asyncio.wait_for(frontend.engine.drain(), ENGINE_DRAIN_SECONDS)
        ended = await self._all_ended(min(GOAWAY_AFTER_SECONDS, seconds))
        if not ended:
            self._listeners.go_away(max(0.0, deadline - monotonic()) + 2 * LAST_WORDS_SECONDS)
            if not await self._all_ended(deadline - monotonic()):
                await self._interrupt(seconds)
        self._raise_failure()
        log.info("drained")

    async def _all_ended(self, seconds: float) -> bool:
        """Whether every request ended by itself in time, before a second signal."""
        ended = asyncio.create_task(self._frontend.flights.wait_empty(seconds))
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({ended, hurried}, return_when=asyncio.FIRST_COMPLETED)
            return ended.done() and ended.result()
        finally:
            await _cancel(ended, hurried)

    async def _interrupt(self, seconds: float) -> None:
        """End what still runs: the engine answers each abort with a last output, on which the stream ends."""
        frontend = self._frontend
        why = Refusal(
            grpc.StatusCode.UNAVAILABLE, DRAINING, f"this pod ended before the request did (drained for {seconds:g} s)"
        )
        flights = frontend.flights.interrupt(why)
        log.warning("drain is over: ending %d requests", len(flights))
        for flight in flights:
            for choice_id in sorted(flight.open_ids):
                frontend.engine.abort(choice_id)
        await frontend.flights.wait_empty(LAST_WORDS_SECONDS)

    async def _fail(self, failure: EngineFailed) -> None:
        """Out of readiness at once; the streams end by themselves, because their engine's outputs raise."""
        await self._readiness.fail(failure)
        if not await self._frontend.flights.wait_empty(LAST_WORDS_SECONDS):
            log.warning("%d requests did not end in time", len(self._frontend.flights))

    async def _close(self) -> None:
        await self._listeners.stop(CLOSE_SECONDS)
        with suppress(TimeoutError):
            await asyncio.wait_for(
                self._frontend.engine.stop(ENGINE_STOP_SECONDS), ENGINE_STOP_SECONDS + LAST_WORDS_SECONDS
            )
        self._reader.close()

    async def _poll_state(self) -> None:
        """Keep the state that /metrics shows fresh; a silent engine leaves the last one."""
        while True:
            await asyncio.sleep(STATE_POLL_SECONDS)
            try:
                await self._frontend.state()
            except Refusal as refusal:
                log.warning("engine state: %s", refusal.message)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs and take its end, so that no result is lost unseen."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=LAST_WORDS_SECONDS)
