"""What happened when, in a number of bins that does not grow with the trace: bins widen as the replay gets longer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from shiftcore.layout import Gear

BINS = 512  # at most; between half of them and all are in use
FIRST_WIDTH_SECONDS = 2.0**-6  # doubles as often as needed, so that bins of two replays can be brought to one width
_RATIO = math.log(1.02)


class Series:
    """Of one replay, over all its engines. Every list has a sum per bin; divided by its width it is a mean of time."""

    def __init__(self, bins: int = BINS, width_seconds: float = FIRST_WIDTH_SECONDS) -> None:
        self.width_seconds = width_seconds
        self.origin_seconds: float | None = None  # the first arrival
        self.arrived = [0.0] * bins  # requests
        self.tokens = [0.0] * bins  # that steps computed, of prompts and of answers
        self.output = [0.0] * bins  # tokens of answers
        self.waiting = [0.0] * bins  # requests, times seconds
        self.kv = [0.0] * bins  # share of an engine's blocks in use, times seconds
        self.gears: dict[Gear, list[float]] = {}  # seconds that an engine ran a gear
        self._ttft: list[Counter[int]] = [Counter() for _ in range(bins)]  # by arrival and logarithm
        self._bins = bins

    def arrival(self, seconds: float) -> None:
        if self.origin_seconds is None:
            self.origin_seconds = seconds
        self.arrived[self._bin(seconds)] += 1

    def answered(self, arrival_seconds: float, ttft_seconds: float) -> None:
        """A request's first token came so long after its arrival."""
        bucket = math.floor(math.log(max(ttft_seconds, 1e-9)) / _RATIO)
        self._ttft[self._bin(arrival_seconds)][bucket] += 1

    def ran(
        self, gear: Gear, start_seconds: float, end_seconds: float, tokens: int, output: int, waiting: int, kv: float
    ) -> None:
        """One step of an engine, or many in a row: what they computed is spread evenly over the time they took."""
        last = self._bin(end_seconds)
        first = self._bin(start_seconds)  # in this order: the end may widen the bins
        busy = self.gears.get(gear)
        if busy is None:
            busy = self.gears[gear] = [0.0] * self._bins
        seconds = end_seconds - start_seconds
        if first == last:
            self._add(busy, first, seconds, tokens, output, waiting, kv)
            return
        begin, width = start_seconds - (self.origin_seconds or 0.0), self.width_seconds
        for index in range(first, last + 1):
            inside = min(begin + seconds, (index + 1) * width) - max(begin, index * width)
            share = inside / seconds
            self._add(busy, index, inside, tokens * share, output * share, waiting, kv)

    def _add(
        self, busy: list[float], index: int, seconds: float, tokens: float, output: float, waiting: int, kv: float
    ) -> None:
        busy[index] += seconds
        self.tokens[index] += tokens
        self.output[index] += output
        self.kv[index] += kv * seconds
        if waiting:
            self.waiting[index] += waiting * seconds

    def widen(self, width_seconds: float) -> None:
        """Until bins are at least so wide."""
        while self.width_seconds < width_seconds:
            self._double()

    def ttft_percentiles(self, percent: float, window: int) -> list[float | None]:
        """Seconds, of the requests that arrived in ``window`` bins around each; None where none did. Within 1 %."""
        return [_percentile(counts, percent) for counts in self._around(window)]

    def _around(self, window: int) -> Iterator[Counter[int]]:
        """A running sum: the same counter each time."""
        before, counts = window // 2, Counter[int]()
        for index in range(-before, self._bins):
            if (entering := index + before) < self._bins:
                counts.update(self._ttft[entering])
            if (leaving := index + before - window) >= 0:
                counts.subtract(self._ttft[leaving])
            if index >= 0:
                yield counts

    def _bin(self, seconds: float) -> int:
        """Somewhat before the origin counts as at it: a request may be seen before an earlier one is tokenized."""
        if self.origin_seconds is None:
            self.origin_seconds = seconds
        since = seconds - self.origin_seconds
        while since >= self._bins * self.width_seconds:
            self._double()
        return int(since / self.width_seconds) if since > 0 else 0

    def _double(self) -> None:
        self.width_seconds *= 2
        for sums in (self.arrived, self.tokens, self.output, self.waiting, self.kv, *self.gears.values()):
            sums[:] = _in_pairs(sums)
        pairs = zip(self._ttft[::2], self._ttft[1::2], strict=True)
        self._ttft = [one + other for one, other in pairs]
        self._ttft += [Counter() for _ in range(self._bins - len(self._ttft))]


def _in_pairs(sums: Sequence[float]) -> list[float]:
    joined = [one + other for one, other in zip(sums[::2], sums[1::2], strict=True)]
    return joined + [0.0] * (len(sums) - len(joined))


def _percentile(counts: Counter[int], percent: float) -> float | None:
    rank = max(1, math.ceil(counts.total() * percent / 100))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return math.exp((bucket + 0.5) * _RATIO)
    return None
