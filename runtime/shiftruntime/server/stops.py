"""Stop strings across token borders: text is shown only when no stop string can still begin in it."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Cuts a growing text at the first stop string. However the text is split into pushes, the result is the same."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """``include``: the stop string that was met is shown."""
        self._include = include
        self._stops = tuple(stops)
        self._held = ""
        self._exempt = 0  # leading characters of what is held in which no stop string may end
        self.met = False

    def push(self, text: str, may_stop: bool = True) -> str:
        """Text that may be shown now. After a stop string was met (see ``met``) nothing more comes out.

        Unless the text ``may_stop``, no stop string is met that ends in it; one may still begin there.
        """
        if self.met:
            return ""
        self._held += text
        if not may_stop:
            self._exempt = len(self._held)
        match = self._first_match()
        if match is not None:
            self.met = True
            shown, self._held = self._held[:match], ""
            return shown
        border = len(self._held) - self._pending()
        shown, self._held = self._held[:border], self._held[border:]
        self._exempt = max(0, self._exempt - border)
        return shown

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        shown, self._held = self._held, ""
        return shown

    def _first_match(self) -> int | None:
        """Where to cut for the stop string that is complete first (the longest of those that end together)."""
        found = ((self._held.find(stop, max(0, self._exempt - len(stop) + 1)), stop) for stop in self._stops)
        ends = [(start + len(stop), start) for start, stop in found if start >= 0]
        if not ends:
            return None
        end, start = min(ends)
        return end if self._include else start

    def _pending(self) -> int:
        """Length of the longest end of the held text that is the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
