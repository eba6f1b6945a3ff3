"""What the steps of one engine did: counts per gear since the start, and the windows of its load."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict

from shiftcore.layout import Gear
from shiftcore.loads import LoadWindows
from shiftcore.scheduler import Batch, Finish, Request

from shiftruntime.engine.messages import STEP_BUCKETS_SECONDS


class Tally:
    """Keyed by gear; a gear that has run no step counts zero."""

    def __init__(self) -> None:
        self.windows = LoadWindows()
        self.steps: Counter[Gear] = Counter()
        self.tokens: Counter[Gear] = Counter()
        self.busy_seconds: defaultdict[Gear, float] = defaultdict(float)
        self.step_counts: defaultdict[Gear, list[int]] = defaultdict(lambda: [0] * (len(STEP_BUCKETS_SECONDS) + 1))
        self.shifts = 0
        self._last_gear: Gear | None = None
        self._first_token: dict[str, float] = {}

    def step(self, gear: Gear, batch: Batch, tokens: int, seconds: float) -> None:
        now = time.monotonic()
        self.steps[gear] += 1
        self.tokens[gear] += tokens
        self.busy_seconds[gear] += seconds
        self.step_counts[gear][bisect_left(STEP_BUCKETS_SECONDS, seconds)] += 1
        self.shifts += self._last_gear is not None and self._last_gear != gear
        self._last_gear = gear
        self.windows.step_tokens.add(now, tokens)
        self.windows.busy_seconds.add(now, seconds)
        self.windows.output_tokens.add(now, sum(chunk.samples and not chunk.request.ended for chunk in batch))

    def prompt(self, tokens: int, now: float) -> None:
        """A request with a prompt of so many tokens is admitted."""
        self.windows.prompt_tokens.add(now, tokens)

    def output(self, request: Request, finish: Finish | None) -> None:
        """A request got a token."""
        now = time.monotonic()
        first = self._first_token.setdefault(request.id, now)
        if first == now:
            self.windows.ttft_seconds.add(now, now - request.arrival_seconds)
        if finish is not None and request.num_output > 1:
            self.windows.tpot_seconds.add(now, (now - first) / (request.num_output - 1))

    def forget(self, request: Request) -> None:
        """The request has ended; its id may come again."""
        self._first_token.pop(request.id, None)
