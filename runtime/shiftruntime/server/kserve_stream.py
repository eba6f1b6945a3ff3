"""The answers of one ModelStreamInfer call, which many requests share: written one after the other, each in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from shiftprotos.kserve import open_inference_pb2 as pb

from shiftruntime.server import deadlines
from shiftruntime.server.refusal import Refusal

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

# Answers that wait for the client; who makes more waits in turn.
_AHEAD = 4


class Answers:
    """A request may give up waiting for its turn; a write that has begun must end, or ends the call."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queue: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue(_AHEAD)

    @asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Write while inside, and all that is left at the end; raises Refusal when the client reads nothing."""
        late: Refusal | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                yield
                await self._queue.put(None)  # the writer's deadline bounds it
        except* Refusal as refusals:
            late = next(each for each in refusals.exceptions if isinstance(each, Refusal))
        if late is not None:
            raise late

    async def put(self, response: pb.ModelStreamInferResponse) -> None:
        await self._queue.put(response)

    async def _write(self) -> None:
        while (response := await self._queue.get()) is not None:  # the call's end cancels it
            async with deadlines.until(deadlines.WRITE_SECONDS, deadlines.too_slow):
                await self._context.write(response)
