"""The smallest fleet that meets the targets on a trace, per layout, by bisection over replays.

More engines never make it worse but for chance, so the predicate counts as monotone. A replay ends as soon as more
requests missed than the percentile allows: fleets that are too small are the slowest to play and the first to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shiftsim.engine import Engine, EngineOptions
from shiftsim.fleet import Fleet
from shiftsim.generation import Generation
from shiftsim.measures import Measures
from shiftsim.slo import Slo, tpot, ttft
from shiftsim.trace import Arrival
from shiftsim.work import Executor

Arrivals = Callable[[], Iterable[Arrival]]
Tried = Callable[[int], None]  # is told how many engines are tried


@dataclass(frozen=True)
class Demand:
    """What a trace asks for: requests, those of more than one token, and the seconds from first arrival to last."""

    requests: int
    readers: int
    seconds: float

    @staticmethod
    def of(arrivals: Iterable[Arrival]) -> Demand:
        requests = readers = 0
        first = last = 0.0
        for arrival in arrivals:
            first, last = (first if requests else arrival.seconds), arrival.seconds
            requests += 1
            readers += arrival.output_tokens > 1
        return Demand(requests, readers, last - first)


@dataclass(frozen=True)
class Verdict:
    """Of one size. ``missed``: the target that does not hold, ``TTFT`` or ``TPOT``, or nothing; ``refusal``: why a
    request can never run, whatever the size."""

    engines: int
    missed: str = ""
    refusal: str = ""
    ttft_seconds: float = 0.0
    tpot_seconds: float = 0.0

    @property
    def meets(self) -> bool:
        return not self.missed and not self.refusal


@dataclass(frozen=True)
class Answer:
    """``smallest`` that meets the targets, None where even ``most`` do not; ``below``: the largest that does not."""

    smallest: Verdict | None
    below: Verdict | None


class _TooManyError(Exception):
    """The target named cannot be met any more."""


class _Strict(Measures):
    """Ends a replay when more requests missed a target than its percentile allows."""

    def __init__(self, slo: Slo, demand: Demand) -> None:
        super().__init__()
        self._slo = slo
        self._late = _allowed(demand.requests, slo.percentile)
        self._slow = _allowed(demand.readers, slo.percentile)

    def began(self, request: Generation, now: float) -> None:
        self._late -= not self._slo.begins_in_time(ttft(request))
        if self._late < 0:
            raise _TooManyError("TTFT")

    def finished(self, request: Generation, now: float) -> None:
        super().finished(request, now)
        self._slow -= request.num_output > 1 and not self._slo.reads_in_time(tpot(request, now))
        if self._slow < 0:
            raise _TooManyError("TPOT")


def _allowed(requests: int, percentile: int) -> int:
    """How many may miss so that the nearest-rank percentile still holds."""
    return requests - max(1, -(-requests * percentile // 100)) if requests else 0


def smallest(
    executor: Executor, options: EngineOptions, slo: Slo, arrivals: Arrivals, most: int, *,
    tried: Tried = lambda engines: None,
) -> Answer:  # fmt: skip
    """Of up to ``most`` engines: twice as many until it is enough, then bisection."""
    demand = Demand.of(arrivals())
    low, high, below, found = 0, 1, None, None
    while found is None:
        tried(high)
        verdict = attempt(executor, options, slo, arrivals, high, demand)
        if verdict.meets:
            found = verdict
        elif verdict.refusal or high >= most:
            return Answer(None, verdict)
        else:
            below, low, high = verdict, high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        tried(middle)
        verdict = attempt(executor, options, slo, arrivals, middle, demand)
        if verdict.meets:
            found, high = verdict, middle
        else:
            below, low = verdict, middle
    return Answer(found, below)


def attempt(
    executor: Executor, options: EngineOptions, slo: Slo, arrivals: Arrivals, engines: int, demand: Demand
) -> Verdict:
    """One size on the whole trace, or up to the request with which it fails."""
    measures = _Strict(slo, demand)
    fleet = Fleet([Engine(executor, options, measures) for _ in range(engines)], executor.tokenize_seconds)
    try:
        fleet.replay(arrivals())
    except _TooManyError as missed:
        return Verdict(engines, missed=str(missed))
    return Verdict(
        engines,
        refusal=next(iter(fleet.refusals.counts), ""),
        ttft_seconds=measures.ttft.percentile(slo.percentile),
        tpot_seconds=measures.tpot.percentile(slo.percentile),
    )
