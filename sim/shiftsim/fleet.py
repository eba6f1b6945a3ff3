"""Engines behind a balancer, and a trace that is played to them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

from shiftsim.engine import Engine
from shiftsim.generation import Generation
from shiftsim.refusals import Refusals
from shiftsim.trace import Arrival

Progress = Callable[[int], None]  # is told how many requests have arrived


class Fleet:
    """Equal engines; a request goes to the one with the fewest unfinished requests, the first of these.

    The balancer knows these numbers exactly and without delay, which favours layouts of many engines a little.
    """

    def __init__(self, engines: Sequence[Engine], tokenize_seconds: Callable[[int], float]) -> None:
        self.engines = engines
        self.peak_waiting = 0
        self.refusals = Refusals()
        self.arrived = 0
        self.first_arrival_seconds = 0.0
        self.last_arrival_seconds = 0.0
        self._tokenize_seconds = tokenize_seconds

    def replay(self, arrivals: Iterable[Arrival], progress: Progress = lambda arrived: None) -> None:
        """To the last token of the last request."""
        for ready, arrival in tokenized(arrivals, self._tokenize_seconds):
            for engine in self.engines:
                engine.advance(ready)
            self._submit(ready, arrival)
            progress(self.arrived)
        for engine in self.engines:
            engine.advance()

    def _submit(self, ready: float, arrival: Arrival) -> None:
        if not self.arrived:
            self.first_arrival_seconds = arrival.seconds
        request = Generation.of(self.arrived, arrival.seconds, arrival.prompt_tokens, arrival.output_tokens)
        self.arrived += 1
        self.last_arrival_seconds = max(self.last_arrival_seconds, arrival.seconds)
        engine = min(self.engines, key=lambda engine: engine.unfinished)
        refused = engine.submit(request, ready)
        if refused:
            self.refusals.add(refused)
        self.peak_waiting = max(self.peak_waiting, sum(engine.waiting for engine in self.engines))


def tokenized(arrivals: Iterable[Arrival], seconds: Callable[[int], float]) -> Iterator[tuple[float, Arrival]]:
    """With the moment at which an engine gets it, in order of these: a long prompt takes longer to tokenize."""
    held: list[tuple[float, int, Arrival]] = []
    for number, arrival in enumerate(arrivals):
        while held and held[0][0] <= arrival.seconds:
            ready, _, before = heapq.heappop(held)
            yield ready, before
        heapq.heappush(held, (arrival.seconds + seconds(arrival.prompt_tokens), number, arrival))
    while held:
        ready, _, before = heapq.heappop(held)
        yield ready, before
