"""When a request must be over: what the client asked, what its transport leaves it, and what the server allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import grpc
from shiftprotos import contract

from shiftruntime.server.limits import ServerLimits
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request import Delta, Generation

# A client that takes nothing for so long is gone; its request is aborted.
WRITE_SECONDS = 60.0


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
        async with until(self.end - monotonic(), self.late):
            yield

    @asynccontextmanager
    async def first_token(self) -> AsyncIterator[None]:
        """Also raises Refusal (RESOURCE_EXHAUSTED) when the first token has been waited for long enough."""
        if self.end <= self.first_token_end:
            async with self.whole():
                yield
        else:
            async with until(self.first_token_end - monotonic(), self._waited):
                yield

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """For one write: raises Refusal when the client does not take it in time."""
        async with until(self.write_seconds, self.late if self.write_seconds < WRITE_SECONDS else too_slow):
            yield

    @property
    def write_seconds(self) -> float:
        """What a write may take from now on."""
        return max(0.0, min(self.end - monotonic(), WRITE_SECONDS))

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


async def deliver(
    deltas: AsyncGenerator[Delta, None], deadlines: Deadlines, write: Callable[[Delta], Awaitable[None]]
) -> None:
    """Write every delta. A client that does not take one in time ends the request: raises Refusal, also inside."""
    async for delta in deltas:
        try:
            async with deadlines.writing():
                await write(delta)
        except Refusal as refusal:
            await deltas.athrow(refusal)  # so that the log and the metrics have its reason
            raise


def too_slow() -> Refusal:
    return Refusal(
        grpc.StatusCode.CANCELLED,
        "ClientTooSlow",
        f"the client took nothing of its answer for {WRITE_SECONDS:g} s; read it as it comes, or ask for less",
    )


@asynccontextmanager
async def until(seconds: float, refusal: Callable[[], Refusal]) -> AsyncIterator[None]:
    """Raises what ``refusal`` makes when the inside takes longer."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            yield
    except TimeoutError as error:
        raise refusal() from error
