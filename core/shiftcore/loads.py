"""Sliding windows over what an engine did, on the clock of who drives it: what the autoscaler is told of its load."""

from __future__ import annotations

from collections import deque

_RATE_SECONDS = 10.0
_LATENCY_SECONDS = 60.0


class Window:
    """Values of the last ``span_seconds``; times come from the caller and never go back."""

    def __init__(self, span_seconds: float) -> None:
        self._span_seconds = span_seconds
        self._values: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        self._values.append((now, value))

    def total(self, now: float) -> float:
        self._expire(now)
        return sum(value for _, value in self._values)

    def rate(self, now: float) -> float:
        """Per second of the whole span."""
        return self.total(now) / self._span_seconds

    def percentiles(self, now: float, *percents: int) -> tuple[float, ...]:
        """Nearest rank, of each in 1..100; 0 without values."""
        self._expire(now)
        values = sorted(value for _, value in self._values)
        return tuple(values[-(-percent * len(values) // 100) - 1] if values else 0.0 for percent in percents)

    def _expire(self, now: float) -> None:
        while self._values and self._values[0][0] < now - self._span_seconds:
            self._values.popleft()


class LoadWindows:
    """All windows of one engine."""

    def __init__(self) -> None:
        self.step_tokens = Window(_RATE_SECONDS)
        self.busy_seconds = Window(_RATE_SECONDS)
        self.prompt_tokens = Window(_RATE_SECONDS)
        self.output_tokens = Window(_RATE_SECONDS)
        self.ttft_seconds = Window(_LATENCY_SECONDS)
        self.tpot_seconds = Window(_LATENCY_SECONDS)


def tokens_shifted(in_tp: int, in_all: int, num_gears: int) -> float:
    """Share of recent tokens that did not run in the tp gear; 1 when there is no other gear, or no token."""
    return 1.0 - in_tp / in_all if num_gears > 1 and in_all else 1.0
