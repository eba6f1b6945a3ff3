"""What a replay measures of its requests."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from shiftsim.generation import Generation
from shiftsim.series import Series

EXACT = 1_000_000  # values that are kept; 8 bytes each
_RATIO = math.log(1.01)


class Distribution:
    """Values of at least 0. Beyond a million their logarithms are counted, for percentiles within half a per cent."""

    def __init__(self, exact: int | None = None) -> None:
        self._exact = EXACT if exact is None else exact
        self._values = array("d")
        self._sorted = True
        self._counts: Counter[int] = Counter()  # by logarithm; the smallest is that of 0
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    @property
    def is_exact(self) -> bool:
        return not self._counts

    @property
    def values(self) -> Sequence[float]:
        """All of them, while it is exact."""
        return self._values

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)
        if self._counts:
            self._counts[_bucket(value)] += 1
            return
        self._values.append(value)
        self._sorted = False
        if len(self._values) > self._exact:
            self._counts.update(map(_bucket, self._values))
            self._values = array("d")

    def percentile(self, percent: float) -> float:
        """The smallest value that so many per cent do not exceed; 0 without values."""
        rank = max(1, math.ceil(self.count * percent / 100))
        if self._counts:
            return self._counted(rank)
        if not self._values:
            return 0.0
        return self._in_order()[rank - 1]

    def shares(self, limits: Sequence[float]) -> list[float]:
        """Which share of the values each limit is not exceeded by; limits in ascending order."""
        if not self._counts:
            values = self._in_order()
            return [bisect_right(values, limit) / max(1, len(values)) for limit in limits]
        buckets, seen, found = sorted(self._counts.items()), 0, []
        at = 0
        for limit in limits:
            while at < len(buckets) and buckets[at][0] <= _bucket(limit):
                seen += buckets[at][1]
                at += 1
            found.append(seen / self.count)
        return found

    def _in_order(self) -> array[float]:
        if not self._sorted:
            self._values = array("d", sorted(self._values))
            self._sorted = True
        return self._values

    def _counted(self, rank: int) -> float:
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return math.exp((bucket + 0.5) * _RATIO) if bucket > _ZERO else 0.0
        return self.largest


_ZERO = -10_000


def _bucket(value: float) -> int:
    return math.floor(math.log(value) / _RATIO) if value > 0 else _ZERO


class Measures:
    """Of the requests of one replay, over all its engines. Times in seconds, from arrival."""

    def __init__(self) -> None:
        self.ttft = Distribution()  # to the first token
        self.tpot = Distribution()  # per token after the first
        self.total = Distribution()  # to the last token
        self.queued = Distribution()  # until a step took the request up for the first time
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.last_end_seconds = 0.0
        self.series = Series()

    def began(self, request: Generation, now: float) -> None:
        """Its first token is there."""

    def finished(self, request: Generation, now: float) -> None:
        assert request.first_token_seconds is not None, f"request {request.id} ends without a token"
        assert request.first_scheduled_seconds is not None, f"request {request.id} ends without a step"
        self.queued.add(request.first_scheduled_seconds - request.arrival_seconds)
        self.ttft.add(request.first_token_seconds - request.arrival_seconds)
        self.series.answered(request.arrival_seconds, request.first_token_seconds - request.arrival_seconds)
        self.total.add(now - request.arrival_seconds)
        if request.num_output > 1:
            self.tpot.add((now - request.first_token_seconds) / (request.num_output - 1))
        self.prompt_tokens += len(request.prompt)
        self.output_tokens += request.num_output
        self.last_end_seconds = max(self.last_end_seconds, now)
