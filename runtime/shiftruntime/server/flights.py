"""The requests in flight on this pod: unique ids, waiting until none is left, ending those that are left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

import grpc

from shiftruntime.server.refusal import DUPLICATE_REQUEST, Refusal


@dataclass
class Flight:
    """One Generate call from arrival to end."""

    request_id: str
    arrived: float = field(default_factory=monotonic)
    submitted: bool = False  # the engine may know the id
    finished: bool = False  # the engine has said, or been told, that it is over
    interruption: Refusal | None = None  # why the pod ends the call itself


class Flights:
    """Lives in the event loop; not for threads."""

    def __init__(self) -> None:
        self._by_id: dict[str, Flight] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, request_id: str) -> Flight | None:
        return self._by_id.get(request_id)

    @contextmanager
    def enter(self, request_id: str) -> Iterator[Flight]:
        """Hold the id for the time of the call; raises Refusal when it is in flight."""
        if request_id in self._by_id:
            raise Refusal(
                grpc.StatusCode.ALREADY_EXISTS,
                DUPLICATE_REQUEST,
                f"request_id {request_id!r} is in flight; choose another or leave it empty",
            )
        flight = self._by_id[request_id] = Flight(request_id)
        self._empty.clear()
        try:
            yield flight
        finally:
            del self._by_id[request_id]
            if not self._by_id:
                self._empty.set()

    def interrupt(self, why: Refusal) -> tuple[Flight, ...]:
        """Mark every call to end with ``why``; returns them, so that the engine can be told."""
        flights = tuple(self._by_id.values())
        for flight in flights:
            flight.interruption = why
        return flights

    async def wait_empty(self, seconds: float) -> bool:
        """Whether no call is in flight any more within ``seconds``."""
        try:
            await asyncio.wait_for(self._empty.wait(), max(0.0, seconds))
        except TimeoutError:
            return False
        return True
