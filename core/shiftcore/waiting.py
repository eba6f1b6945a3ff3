"""Requests that wait for their turn: by priority, then fair shares of the tenants, then arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from shiftcore.fairness import TenantShares
from shiftcore.request import Request


class Waiting:
    """A queue per tenant: shares move with every step, but never change the order within one."""

    def __init__(self, shares: TenantShares) -> None:
        self._shares = shares
        self._queues: dict[str, list[Request]] = {}  # by tenant, the most important first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        """In no order that matters."""
        for queue in self._queues.values():
            yield from queue

    @property
    def num_tenants(self) -> int:
        """Tenants of which a request waits."""
        return len(self._queues)

    def add(self, request: Request) -> None:
        insort(self._queues.setdefault(request.tenant, []), request, key=_importance)
        self._count += 1
        self._shares.enter(request.tenant)

    def remove(self, request: Request) -> None:
        queue = self._queues[request.tenant]
        place = bisect_left(queue, request.importance, key=_importance)
        assert queue[place] is request, f"request {request.id} does not wait"
        del queue[place]
        if not queue:
            del self._queues[request.tenant]
        self._count -= 1
        self._shares.leave(request.tenant)

    def first(self, may_begin: Callable[[Request], bool]) -> Request | None:
        """Of those that may begin, the one whose turn it is."""
        heads = (next(filter(may_begin, queue), None) for queue in self._queues.values())
        return min((head for head in heads if head is not None), key=self._turn, default=None)

    def _turn(self, request: Request) -> tuple[int, int, int]:
        return request.priority, self._shares.served(request.tenant), request.order


def _importance(request: Request) -> tuple[int, int]:
    return request.importance
