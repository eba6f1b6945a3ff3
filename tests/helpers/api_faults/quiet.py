"""When a run has come to rest, told by the writes that the API server answers and not by a clock alone."""

from __future__ import annotations

import os
import time

from helpers.control_plane.audit import AuditLog, Request

# The operator asks for its Lease every 2.4 s, so this is 14 s on its own clock, which a busy machine slows down.
# Without a write for so long nothing more comes: it looks at everything every second, lists every 3 s, tries again
# after 7 s at most, takes a Lease over after 12 s, and no fault lasts longer than 7 s.
_STILL_ROUNDS = 6
# The same of an operator that does nothing any more.
_STILL_SECONDS = 20.0
# Against a hang while something is still written.
_DEADLINE_SECONDS = 45.0


def load() -> float:
    """How much longer than on an idle machine things may take now."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


class Quiet:
    """Of one namespace with so many operators of this user; begins now."""

    def __init__(self, audit: AuditLog, namespace: str, user: str, operators: int = 1) -> None:
        self._audit, self._namespace, self._user = audit, namespace, user
        self._rounds, self._still_rounds = 0, _STILL_ROUNDS * operators
        self._marker = f'"{namespace}"'.encode()
        self._position = audit.position()
        self._began = self._last_write = time.monotonic()

    def over(self) -> str:
        """Why nothing more is to be waited for; empty while something may still come."""
        self._look()
        now, more = time.monotonic(), load()
        if self._rounds > self._still_rounds or now - self._last_write > _STILL_SECONDS * more:
            return f"at rest: no write for {now - self._last_write:.0f} s"
        if now - self._began > _DEADLINE_SECONDS * more:
            return f"still at work after {now - self._began:.0f} s"
        return ""

    def _look(self) -> None:
        since, self._position = self._position, self._audit.complete()
        for request in self._audit.requests(since, marker=self._marker, until=self._position):
            if request.namespace != self._namespace:
                continue
            if _is_work(request):
                self._last_write, self._rounds = time.monotonic(), 0
            elif (request.user, request.verb, request.resource) == (self._user, "get", "leases"):
                self._rounds += 1


def _is_work(request: Request) -> bool:
    wrote = request.writes and request.code < 300 and "dryRun=All" not in request.uri
    return wrote and request.resource not in ("events", "leases")
