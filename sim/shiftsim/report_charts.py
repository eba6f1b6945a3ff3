"""The plots of the report, as data: what is on the axes, and the points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shiftcore.layout import Gear

from shiftsim import report_words
from shiftsim.measures import Distribution
from shiftsim.replay import Outcome

CDF_POINTS = 400
ROLLING_SHARE = 1 / 40  # of the time shown: over so much of it percentiles over time are taken

Values = Sequence[float | None]


@dataclass(frozen=True)
class Axis:
    label: str  # with its unit
    unit: str  # behind a value
    log: bool = False
    largest: float | None = None  # where it ends, if not at the largest value


@dataclass(frozen=True)
class Line:
    """``style``: which colour and dashes, the same for a layout, or a gear, in all plots."""

    name: str
    values: Values
    style: int


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    x: Axis
    y: Axis
    at: Values  # along x
    lines: tuple[Line, ...]
    stacked: bool = False
    mark: float | None = None  # the last arrival, along x; None where x is not time


def charts(outcomes: Sequence[Outcome]) -> list[Chart]:
    """Of the same trace; their bins are brought to one width."""
    return [*_distributions(outcomes), *_over_time(outcomes)]


def _distributions(outcomes: Sequence[Outcome]) -> Iterator[Chart]:
    yield _cdf(
        "Time to first token", "From a request's arrival to its first token. Further left and steeper is better.",
        Axis("TTFT (seconds, logarithmic)", "s", log=True), 1, outcomes, [o.measures.ttft for o in outcomes],
    )  # fmt: skip
    yield _cdf(
        "Time per output token", "Of each request, from its first token to its last. Further left is better.",
        Axis("TPOT (milliseconds, logarithmic)", "ms", log=True), 1000, outcomes, [o.measures.tpot for o in outcomes],
    )  # fmt: skip


def _cdf(
    title: str, note: str, x: Axis, factor: float, outcomes: Sequence[Outcome], values: Sequence[Distribution]
) -> Chart:
    filled = [one for one in values if one.count]
    low = max(1e-6, min((one.percentile(0) for one in filled), default=0.01)) * 0.95
    high = max(low * 1.1, max((one.largest for one in filled), default=1.0) * 1.05)
    at = [low * (high / low) ** (i / (CDF_POINTS - 1)) for i in range(CDF_POINTS)]
    lines = (
        Line(outcome.layout, [100 * share for share in one.shares(at)], number)
        for number, (outcome, one) in enumerate(zip(outcomes, values, strict=True))
    )
    y = Axis("requests that took at most so long (%)", "%", largest=100)
    return Chart(title, note, x, y, [value * factor for value in at], tuple(lines))


def _over_time(outcomes: Sequence[Outcome]) -> Iterator[Chart]:
    time = _Time(outcomes)
    for percent, note in ((50, "Half of the requests waited less."), (95, "One request in twenty waited longer.")):
        yield time.chart(
            f"TTFT over time, p{percent}", f"{note} Of those that arrived within {time.rolling_words} around.",
            Axis(f"TTFT p{percent} (seconds, logarithmic)", "s", log=True),
            lambda outcome, percent=percent: time.ttft(outcome, percent),  # type: ignore[misc]
        )  # fmt: skip
    yield time.chart(
        "Throughput", "Tokens of prompts and of answers that the GPUs computed.",
        Axis("tokens per second", "tokens/s"), lambda outcome: time.mean(outcome, outcome.measures.series.tokens),
    )  # fmt: skip
    yield time.chart(
        "Output", "Tokens of answers alone.",
        Axis("output tokens per second", "tokens/s"),
        lambda outcome: time.mean(outcome, outcome.measures.series.output),
    )  # fmt: skip
    yield time.chart(
        "Queue", "Requests that have arrived and that no step has taken up. A queue that only grows is a layout that "
        "drowns.", Axis("waiting requests", "requests"),
        lambda outcome: time.mean(outcome, outcome.measures.series.waiting),
    )  # fmt: skip
    yield time.chart(
        "KV cache in use", "At 100 % there is room for nobody more.", Axis("KV cache in use (%)", "%", largest=100),
        lambda outcome: time.mean(outcome, outcome.measures.series.kv, 100 / outcome.engines),
    )  # fmt: skip
    yield time.demand()
    gears = {gear for outcome in outcomes for gear in outcome.measures.series.gears}
    ordered = sorted(gears, key=lambda gear: (-gear.tensor, gear.sequence))
    for outcome in outcomes:
        yield time.gears(outcome, ordered)


class _Time:
    """The axis that all plots over time share."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = outcomes
        self.width = max(outcome.measures.series.width_seconds for outcome in outcomes)
        for outcome in outcomes:
            outcome.measures.series.widen(self.width)
        last = max(outcome.duration_seconds for outcome in outcomes)
        self.bins = int(last / self.width) + 1
        self.unit, self.scale = ("s", 1.0) if last < 300 else ("min", 60.0) if last < 4 * 3600 else ("h", 3600.0)
        self.at = [(i + 0.5) * self.width / self.scale for i in range(self.bins)]
        self.last_arrival = max(outcome.arriving_seconds for outcome in outcomes) / self.scale
        self.window = max(1, math.ceil(self.bins * ROLLING_SHARE)) | 1
        self.rolling_words = report_words.duration(self.window * self.width)

    def chart(self, title: str, note: str, y: Axis, values: Callable[[Outcome], Values]) -> Chart:
        lines = (Line(outcome.layout, values(outcome), number) for number, outcome in enumerate(self._outcomes))
        return self._chart(title, note, y, tuple(lines))

    def demand(self) -> Chart:
        """The same for all layouts."""
        rate = self._means(self._outcomes[0].measures.series.arrived, self.bins, 1 / self.width)
        return self._chart("Demand", "What the trace asks of every layout.", Axis("arriving requests per second", "/s"),
                           (Line("arrivals", rate, 0),))  # fmt: skip

    def gears(self, outcome: Outcome, ordered: Sequence[Gear]) -> Chart:
        used = outcome.measures.series.gears
        lines = (
            Line(gear.name, self.mean(outcome, used[gear], 100 / outcome.engines), number)
            for number, gear in enumerate(ordered)
            if gear in used
        )
        note = "Share of time in each gear; what is left to 100 % is idle."
        return self._chart(f"Gears of {outcome.layout}", note, Axis("time (%)", "%", largest=100), tuple(lines), True)

    def _chart(self, title: str, note: str, y: Axis, lines: tuple[Line, ...], stacked: bool = False) -> Chart:
        x = Axis(f"time since the first arrival ({self.unit})", self.unit)
        return Chart(title, note, x, y, self.at, lines, stacked, self.last_arrival)

    def mean(self, outcome: Outcome, sums: Sequence[float], factor: float = 1.0) -> Values:
        """Over each bin; nothing after the layout's last token."""
        return self._means(sums, self._shown(outcome), factor / self.width)

    def ttft(self, outcome: Outcome, percent: float) -> Values:
        return outcome.measures.series.ttft_percentiles(percent, self.window)[: self.bins]

    def _means(self, sums: Sequence[float], shown: int, factor: float) -> Values:
        return [sums[i] * factor if i < shown else None for i in range(self.bins)]

    def _shown(self, outcome: Outcome) -> int:
        return int(outcome.duration_seconds / self.width) + 1
