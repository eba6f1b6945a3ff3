"""The requests in flight on this pod: unique ids, waiting until none is left, ending those that are left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from shiftruntime.server.refusal import DUPLICATE_REQUEST, Refusal


@dataclass
class Flight:
    """One request from arrival to end."""

    ids: tuple[str, ...]  # one per choice; the first is the request's own
    arrived: float  # monotonic seconds
    open_ids: set[str] = field(default_factory=set)  # what the engine may know and has not ended
    admitted: bool = False  # the engine has taken every choice
    aborted: set[str] = field(default_factory=set)  # choices that were ended by themselves before ``admitted``
    interruption: Refusal | None = None  # why the pod ends the request itself

    @property
    def request_id(self) -> str:
        return self.ids[0]


class Flights:
    """Lives in the event loop; not for threads."""

    def __init__(self) -> None:
        self._by_id: dict[str, Flight] = {}
        self._flights = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return self._flights

    def get(self, request_id: str) -> Flight | None:
        """Also by the id of a choice."""
        return self._by_id.get(request_id)

    @contextmanager
    def enter(self, ids: Sequence[str], arrived: float) -> Iterator[Flight]:
        """Hold the ids while the request runs; raises Refusal when one is in flight. ``arrived``: monotonic seconds."""
        for taken in ids:
            if taken in self._by_id:
                raise Refusal(
                    grpc.StatusCode.ALREADY_EXISTS,
                    DUPLICATE_REQUEST,
                    f"request_id {taken!r} is in flight; choose another or leave it empty",
                )
        flight = Flight(tuple(ids), arrived)
        self._by_id |= dict.fromkeys(ids, flight)
        self._flights += 1
        self._empty.clear()
        try:
            yield flight
        finally:
            for held in ids:
                del self._by_id[held]
            self._flights -= 1
            if not self._flights:
                self._empty.set()

    def interrupt(self, why: Refusal) -> tuple[Flight, ...]:
        """Mark every request to end with ``why``; returns them, so that the engine can be told."""
        flights = tuple({flight.request_id: flight for flight in self._by_id.values()}.values())
        for flight in flights:
            flight.interruption = why
        return flights

    async def wait_empty(self, seconds: float) -> bool:
        """Whether no request is in flight any more within ``seconds``."""
        try:
            await asyncio.wait_for(self._empty.wait(), max(0.0, seconds))
        except TimeoutError:
            return False
        return True
