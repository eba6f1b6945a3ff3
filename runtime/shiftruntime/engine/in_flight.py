"""The requests that the engine was asked for and has not ended.

The engine knows each under an id of our own that never comes again. Its last words about a request whose client left
may come late, when a new request has the same id of its client: they must not meet it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from shiftprotos import contract

from shiftruntime.engine.failures import EngineFailed, RequestRefused
from shiftruntime.engine.messages import Admitted, Output, Refused, Submit


class Asked:
    """One request on its way."""

    def __init__(self, request_id: str, engine_id: str) -> None:
        self.request_id = request_id
        self.engine_id = engine_id
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outputs: asyncio.Queue[Output | EngineFailed] = asyncio.Queue()

    def put(self, item: Output | EngineFailed) -> None:
        self._outputs.put_nowait(item)

    async def outputs(self) -> AsyncIterator[Output]:
        """Until the last one; no deadline: the engine's watchdog bounds every step, and its end wakes the queue."""
        while True:
            output = await self._outputs.get()
            if isinstance(output, EngineFailed):
                raise output
            yield output
            if output.finish is not None:
                return


class InFlight:
    """Lives in the event loop; not for threads."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._by_engine_id: dict[str, Asked] = {}
        self._engine_ids: dict[str, str] = {}  # of requests that nobody has aborted, by the client's id

    def enter(self, request: Submit) -> tuple[Submit, Asked]:
        """(what the engine gets, what becomes of it); raises RequestRefused while the id is in flight."""
        name = request.request_id
        if name in self._engine_ids:
            raise RequestRefused(contract.REFUSED_DUPLICATE_REQUEST, f"request {name} is in flight")
        asked = Asked(name, f"{name}#{next(self._numbers)}")
        leader = self._engine_ids.get(request.shares_prompt_with, "")
        self._engine_ids[name] = asked.engine_id
        self._by_engine_id[asked.engine_id] = asked
        return msgspec.structs.replace(request, request_id=asked.engine_id, shares_prompt_with=leader), asked

    def leave(self, asked: Asked) -> None:
        """It is over, or nobody waits for its outputs any more: what still comes goes to nobody."""
        self._by_engine_id.pop(asked.engine_id, None)
        if self._engine_ids.get(asked.request_id) == asked.engine_id:
            del self._engine_ids[asked.request_id]

    def release(self, request_id: str) -> str | None:
        """The engine's id of a request that is to end; from now on the client's id may come again."""
        return self._engine_ids.pop(request_id, None)

    def handle(self, message: Admitted | Refused | Output) -> None:
        asked = self._by_engine_id.get(message.request_id)
        if asked is None:
            return
        match message:
            case Admitted():
                _resolve(asked.admitted)
            case Refused():
                _reject(asked.admitted, RequestRefused(message.reason, message.message))
            case Output():
                asked.put(message)
                if message.finish is not None:
                    # Here and not where it is read: an iterator that nobody begins would keep the id in flight.
                    self.leave(asked)

    def fail(self, failure: EngineFailed) -> None:
        """Wake everyone who waits."""
        for asked in self._by_engine_id.values():
            _reject(asked.admitted, failure)
            asked.put(failure)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _reject(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
