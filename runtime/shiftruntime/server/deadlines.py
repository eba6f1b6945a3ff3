"""When a request must be over: what the client asked, what its transport leaves it, and what the server allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import grpc
from shiftprotos import contract

from shiftruntime.server.limits import ServerLimits
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request import Generation


@dataclass(frozen=True)
class Deadlines:
    """All in seconds of the monotonic clock."""

    arrived: float
    end: float
    first_token_end: float

    @staticmethod
    def of(generation: Generation, limits: ServerLimits, arrived: float) -> Deadlines:
        asked = [generation.timeout_seconds, generation.deadline_seconds, limits.request_seconds]
        end = arrived + min(seconds for seconds in asked if seconds is not None)
        return Deadlines(arrived, end, arrived + limits.wait_seconds)

    @asynccontextmanager
    async def whole(self) -> AsyncIterator[None]:
        """Raises Refusal (DEADLINE_EXCEEDED) when the request's time is over inside."""
        async with _until(self.end, self.late):
            yield

    @asynccontextmanager
    async def first_token(self) -> AsyncIterator[None]:
        """Also raises Refusal (RESOURCE_EXHAUSTED) when the first token has been waited for long enough."""
        if self.end <= self.first_token_end:
            async with self.whole():
                yield
        else:
            async with _until(self.first_token_end, self._waited):
                yield

    def late(self) -> Refusal:
        return Refusal(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            contract.REFUSED_DEADLINE,
            f"the request's deadline passed, {monotonic() - self.arrived:.3g} s after its arrival",
        )

    def _waited(self) -> Refusal:
        return Refusal(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            contract.REFUSED_WAITED_TOO_LONG,
            f"no first token within {self.first_token_end - self.arrived:g} s, the limit of this pod; "
            "retry on another pod or later",
        )


@asynccontextmanager
async def _until(end: float, refusal: Callable[[], Refusal]) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(max(0.0, end - monotonic())):
            yield
    except TimeoutError as error:
        raise refusal() from error
