"""The front end's handle on the engine process, for an asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from shiftcore.policy import Policy
from shiftprotos import contract

from shiftruntime.engine.failures import EngineFailed, PolicyRefused, RequestRefused
from shiftruntime.engine.in_flight import InFlight
from shiftruntime.engine.liveness import Life, Standstill, describe_state, process_state, run_nanoseconds
from shiftruntime.engine.messages import (
    Abort,
    Admitted,
    Answer,
    Call,
    EngineState,
    Fatal,
    FromEngine,
    Output,
    PhaseUpdate,
    Ready,
    Refused,
    Shutdown,
    Submit,
)
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.start_message import Start
from shiftruntime.worker.frames import FrameBuffer, FrameError, pack

__all__ = ["EngineClient", "EngineFailed", "PolicyRefused", "RequestRefused"]

_READ_BYTES = 1 << 16
_CALL_SECONDS = 15.0
_CALIBRATE_SECONDS = 300.0
_STARTUP_MARGIN_SECONDS = 30.0
_STANDSTILL_MARGIN_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_MAX_GAP_SECONDS = 3.0  # a front end that could not look for longer was held up itself


T = TypeVar("T")


class EngineClient:
    """One engine process. All methods belong to one event loop."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._standstill: EngineFailed | None = None
        self._call_ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._requests = InFlight()
        self._stopping = False

    async def start(self, on_phase: Callable[[PhaseUpdate], None], model: str | None = None) -> Ready:
        """Spawn the engine and wait until it serves; raises EngineFailed.

        ``model``: where the model of the options lies, when that was not known before.
        """
        if model is not None:
            self._options = replace(self._options, model=model)
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[EngineFailed] = loop.create_future()
        self._ready: asyncio.Future[Ready] = loop.create_future()
        self._on_phase = on_phase
        ours, theirs = socket.socketpair()
        command = ("-m", "shiftruntime.engine", "--socket-fd", str(theirs.fileno()))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *command, pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL
        )
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._send(Start(self._options))
        self._reader_task = asyncio.create_task(self._read(reader))
        self._watch_task = asyncio.create_task(self._watch(self._process))
        timeout = self._options.startup_timeout_seconds + _STARTUP_MARGIN_SECONDS
        try:
            return await asyncio.wait_for(self._ready, timeout)
        except TimeoutError as error:
            raise EngineFailed(contract.REASON_START_TIMEOUT, f"the engine did not start in {timeout:g} s") from error

    async def submit(self, request: Submit) -> AsyncIterator[Output]:
        """Admit a request, then iterate over its outputs; raises RequestRefused or EngineFailed."""
        self._check_alive()
        message, asked = self._requests.enter(request)
        self._send(message)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await asked.admitted
        except BaseException as error:
            # Refused, failed, timed out or cancelled: nobody will read the outputs.
            self._requests.leave(asked)
            if not isinstance(error, RequestRefused | EngineFailed):
                self._abort(asked.engine_id)
            if isinstance(error, TimeoutError):
                text = f"the engine did not admit a request within {_CALL_SECONDS:g} s"
                raise EngineFailed(contract.REASON_INTERNAL, text) from error
            raise
        return asked.outputs()

    def abort(self, request_id: str) -> None:
        """End a request if it is in flight; its last output says so. Its id may be used again at once."""
        engine_id = self._requests.release(request_id)
        if engine_id is not None:
            self._abort(engine_id)

    async def state(self) -> EngineState:
        return await self._call("state")

    async def set_policy(self, policy: Policy) -> EngineState:
        """Accepted when this returns; applied at the next step boundary. Raises PolicyRefused."""
        return await self._call("set_policy", policy)

    async def calibrate(self) -> EngineState:
        """Measure the gears again, on an idle engine; the deadline is here. Raises PolicyRefused or EngineFailed."""
        return await self._call("calibrate", timeout_seconds=_CALIBRATE_SECONDS)

    async def drain(self) -> EngineState:
        """Refuse new requests from now on."""
        return await self._call("drain")

    async def stop(self, timeout_seconds: float) -> None:
        """End the engine and its ranks; by force after the timeout."""
        self._stopping = True
        if self._watch_task is not None:
            self._watch_task.cancel()
        process = self._process
        if process is None:
            return
        if self._writer is None:  # cancelled between the spawn and the connection
            process.kill()
        else:
            with contextlib.suppress(ConnectionError):
                self._send(Shutdown())
        try:
            await asyncio.wait_for(process.wait(), timeout_seconds)
        except TimeoutError:
            process.kill()  # the ranks follow: the kernel ends them with their parent
            await process.wait()
        if self._writer is not None:
            self._writer.close()
        if self._reader_task is not None:
            self._reader_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader_task

    async def _call(
        self, verb: str, policy: Policy | None = None, timeout_seconds: float = _CALL_SECONDS
    ) -> EngineState:
        self._check_alive()
        call_id = next(self._call_ids)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = answered
        try:
            self._send(Call(call_id, verb, policy))
            answer = await asyncio.wait_for(answered, timeout_seconds)
        except TimeoutError as error:
            text = f"the engine did not answer {verb} within {timeout_seconds:g} s"
            raise EngineFailed(contract.REASON_INTERNAL, text) from error
        finally:
            self._calls.pop(call_id, None)
        if answer.state is None:
            raise PolicyRefused(answer.error_kind, answer.error)
        return answer.state

    def _abort(self, engine_id: str) -> None:
        if not self._stopping and not self.failed.done():
            self._send(Abort(engine_id))

    def _send(self, message: msgspec.Struct) -> None:
        assert self._writer is not None, "start() comes first"
        self._writer.write(pack(message))

    def _check_alive(self) -> None:
        if self.failed.done():
            raise self.failed.result()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End an engine that stands still itself; everyone who waits for it learns that from the reader.

        It wakes every second at least, and is held up by a rank that takes no message for the step timeout at most.
        """
        if run_nanoseconds(process.pid) is None:
            return  # this kernel does not tell enough to see so little life
        limit_seconds = self._options.step_timeout_seconds + _STANDSTILL_MARGIN_SECONDS
        watch = Standstill(_engine_life, [process.pid], time.monotonic(), _MAX_GAP_SECONDS)
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if watch.update(time.monotonic())[process.pid] > limit_seconds:
                break
        text = f"the engine process made no progress for {limit_seconds:g} s{describe_state(process.pid)}"
        self._standstill = EngineFailed(contract.REASON_RANK_FAILED, text)
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # its ranks follow

    async def _read(self, reader: asyncio.StreamReader) -> None:
        buffer: FrameBuffer[FromEngine] = FrameBuffer(FromEngine)
        failure = EngineFailed(contract.REASON_RANK_FAILED, "the engine process ended unexpectedly")
        try:
            while data := await reader.read(_READ_BYTES):
                for message in buffer.feed(data):
                    if isinstance(message, Fatal):  # its last word: the process ends once its ranks have
                        failure = EngineFailed(message.reason, message.message)
                        return
                    self._dispatch(message)
        except (ConnectionError, FrameError) as error:
            failure = EngineFailed(contract.REASON_INTERNAL, f"lost the engine: {error}")
        finally:  # also after an error of our own: no stream may wait for ever
            self._fail(self._standstill or failure)

    def _dispatch(self, message: FromEngine) -> None:
        match message:
            case Output() | Admitted() | Refused():
                self._requests.handle(message)
            case Answer(call_id=call_id):
                _resolve(self._calls.get(call_id), message)
            case PhaseUpdate():
                self._on_phase(message)
            case Ready():
                _resolve(self._ready, message)

    def _fail(self, failure: EngineFailed) -> None:
        """Wake everyone who waits for the engine."""
        self._requests.fail(failure)
        for call in self._calls.values():
            _reject(call, failure)
        if not self._ready.done():
            if self._stopping:
                self._ready.cancel()
            else:
                self._ready.set_exception(failure)
        elif not self._stopping:
            _resolve(self.failed, failure)


def _engine_life(pid: int) -> Life:
    """Changes while the engine process lives; waiting for a disk counts as life."""
    return (run_nanoseconds(pid) or 0, time.monotonic_ns() if process_state(pid) == "D" else 0)


def _resolve(future: asyncio.Future[T] | None, value: T) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _reject(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
