"""How each request went: what its last output and the trailers of its call report."""

from __future__ import annotations

from collections import Counter

from shiftcore.layout import Gear
from shiftcore.scheduler import Batch, Request

from shiftruntime.engine.messages import Journey


class Journeys:
    """Of the requests that have begun and not ended. Requests are told apart by identity: an id may come again."""

    def __init__(self) -> None:
        self._gear_tokens: dict[Request, Counter[str]] = {}

    def ran(self, batch: Batch, gear: Gear) -> None:
        """A step is done; what ended meanwhile has reported already."""
        for chunk in batch:
            if not chunk.request.ended:
                self._gear_tokens.setdefault(chunk.request, Counter())[gear.name] += chunk.length

    def end(self, request: Request, now: float) -> Journey:
        """The whole of it; the request is forgotten."""
        begun = request.first_scheduled_seconds
        gear_tokens = self._gear_tokens.pop(request, Counter[str]())
        queue_seconds = (now if begun is None else begun) - request.arrival_seconds
        return Journey(max(0.0, queue_seconds), request.cached_tokens, dict(gear_tokens))
