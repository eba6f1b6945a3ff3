"""One trace under one layout, from the first arrival to the last token, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shiftcore.gears import threshold_in_use

from shiftsim.engine import Engine, EngineOptions, GearUse
from shiftsim.fleet import Fleet, Progress
from shiftsim.measures import Distribution, Measures
from shiftsim.trace import Arrival
from shiftsim.work import Executor

PERCENTILES = (50, 90, 95, 99)
# Who is done so soon after the last arrival has kept up: a share of the time over which requests came, or a minute.
KEEPS_UP_SHARE = 0.1
KEEPS_UP_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """Of one layout. Seconds on the trace's clock."""

    layout: str
    executor: Executor
    options: EngineOptions
    engines: int
    fleet: Fleet
    measures: Measures

    @property
    def finished(self) -> int:
        return self.measures.total.count

    @property
    def refused(self) -> int:
        return len(self.fleet.refusals)

    @property
    def duration_seconds(self) -> float:
        """From the first arrival to the last token."""
        return max(0.0, self.measures.last_end_seconds - self.fleet.first_arrival_seconds)

    @property
    def arriving_seconds(self) -> float:
        return self.fleet.last_arrival_seconds - self.fleet.first_arrival_seconds

    @property
    def drain_seconds(self) -> float:
        """From the last arrival to the last token."""
        return max(0.0, self.measures.last_end_seconds - self.fleet.last_arrival_seconds)

    @property
    def keeps_up(self) -> bool:
        return not self.refused and self.drain_seconds <= max(KEEPS_UP_SECONDS, KEEPS_UP_SHARE * self.arriving_seconds)

    @property
    def preemptions(self) -> int:
        return sum(engine.scheduler.counts.preemptions for engine in self.fleet.engines)

    @property
    def shifts(self) -> int:
        return sum(engine.shifts for engine in self.fleet.engines)

    @property
    def gears(self) -> dict[str, GearUse]:
        """Over all engines, from tp to base."""
        found: dict[str, GearUse] = {}
        for gear in self.executor.table.gears:
            used = [engine.use[gear] for engine in self.fleet.engines if gear in engine.use]
            if used:
                seconds = sum(use.seconds for use in used)
                found[gear.name] = GearUse(sum(u.steps for u in used), sum(u.tokens for u in used), seconds)
        return found

    def gear_shares(self, name: str) -> tuple[float, float, float] | None:
        """Of steps, tokens and busy seconds, those that ran in a gear; None if none did."""
        gears = self.gears
        if name not in gears:
            return None
        use, every = gears[name], gears.values()
        return (
            use.steps / sum(other.steps for other in every),
            use.tokens / sum(other.tokens for other in every),
            use.seconds / sum(other.seconds for other in every),
        )

    def per_second(self, tokens: int) -> float:
        return tokens / self.duration_seconds if self.duration_seconds else 0.0


def replay(
    layout: str, executor: Executor, options: EngineOptions, engines: int, arrivals: Iterable[Arrival],
    progress: Progress = lambda arrived: None,
) -> Outcome:  # fmt: skip
    """``engines`` equal ones behind a balancer; the same arguments give the same outcome."""
    measures = Measures()
    fleet = Fleet([Engine(executor, options, measures) for _ in range(engines)], executor.tokenize_seconds)
    fleet.replay(arrivals, progress)
    return Outcome(layout, executor, options, engines, fleet, measures)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Every name has its unit, but for counts."""
    measures, fleet = outcome.measures, outcome.fleet
    threshold, source = threshold_in_use(outcome.executor.table, outcome.options.policy)
    return {
        "layout": outcome.layout,
        "engines": outcome.engines,
        "kv_cache_tokens_per_engine": outcome.executor.kv_tokens,
        "threshold": {"tokens": threshold, "source": str(source)},
        "requests": {"arrived": fleet.arrived, "finished": outcome.finished, "refused": outcome.refused},
        "refusals": [{"reason": reason, "requests": count} for reason, count in fleet.refusals.counts.items()],
        "keeps_up": outcome.keeps_up,
        "duration_seconds": outcome.duration_seconds,
        "drain_seconds": outcome.drain_seconds,
        "ttft_seconds": _percentiles(measures.ttft),
        "tpot_seconds": _percentiles(measures.tpot),
        "end_to_end_seconds": _percentiles(measures.total),
        "queue_seconds": _percentiles(measures.queued),
        "peak_waiting_requests": fleet.peak_waiting,
        "prompt_tokens": measures.prompt_tokens,
        "output_tokens": measures.output_tokens,
        "prompt_tokens_per_second": outcome.per_second(measures.prompt_tokens),
        "output_tokens_per_second": outcome.per_second(measures.output_tokens),
        "tokens_per_second": outcome.per_second(measures.prompt_tokens + measures.output_tokens),
        "preemptions": outcome.preemptions,
        "shifts": outcome.shifts,
        "gears": {
            name: {"steps": use.steps, "tokens": use.tokens, "busy_seconds": use.seconds}
            for name, use in outcome.gears.items()
        },
    }


def _percentiles(of: Distribution) -> dict[str, float | bool]:
    found: dict[str, float | bool] = {f"p{percent}": of.percentile(percent) for percent in PERCENTILES}
    return {**found, "mean": of.mean, "max": of.largest, "exact": of.is_exact}
