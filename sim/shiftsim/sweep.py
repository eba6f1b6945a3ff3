"""Many replays side by side: one per rate, length of prompts and layout, on as many cores as are wanted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shiftcore.layout import LayoutError

from shiftsim import hardware, layouts, models, poisson, trace
from shiftsim.errors import UserError
from shiftsim.planning import Settings, modelled
from shiftsim.replay import KEEPS_UP_SHARE, Outcome, replay
from shiftsim.trace import Arrival, Shape


@dataclass(frozen=True)
class Load:
    """Of one cell. With a trace, ``rate`` is a factor of its speed and its lengths hold; else requests per second.

    ``prompt_tokens`` 0 stands for the trace's own.
    """

    rate: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    path: Path | None = None
    shape: Shape = trace.AS_RECORDED

    def arrivals(self) -> Iterator[Arrival]:
        if self.path is None:
            yield from poisson.arrivals(
                self.rate, self.requests, self.prompt_tokens, self.output_tokens, self.shape.seed
            )
            return
        for arrival in trace.read(self.path, replace(self.shape, speed=self.shape.speed * self.rate)):
            yield replace(arrival, prompt_tokens=self.prompt_tokens or arrival.prompt_tokens)


@dataclass(frozen=True)
class Service:
    """What all cells have in common."""

    model: str
    kv_cache: str
    hardware: str
    replicas: int
    threshold_tokens: int
    base: str | None
    settings: Settings


@dataclass(frozen=True)
class Cell:
    """One replay that is asked for."""

    service: Service
    load: Load
    layout: str


@dataclass(frozen=True)
class Found:
    """What came of a cell, in seconds and tokens per second; ``unfit``: why it could not be replayed.

    ``too_short``: it keeps up by the minute that everybody has to drain, but not by a tenth of the load's time.
    """

    layout: str
    rate: float
    prompt_tokens: int
    ttft_p50_seconds: float = 0.0
    ttft_p95_seconds: float = 0.0
    tpot_p50_seconds: float = 0.0
    tpot_p95_seconds: float = 0.0
    tokens_per_second: float = 0.0
    keeps_up: bool = False
    too_short: bool = False
    finished: int = 0
    refused: int = 0
    unfit: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run(cells: Sequence[Cell], workers: int) -> Iterator[Found]:
    """In the order of the cells, whatever the number of worker processes; each cell runs on one."""
    if workers < 2 or len(cells) < 2:
        yield from map(play, cells)
        return
    # A fresh interpreter per worker: nothing that this process holds is shared.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(cells))) as pool:
        yield from pool.imap(play, cells)


def play(cell: Cell) -> Found:
    """One replay."""
    load, service = cell.load, cell.service
    try:
        return _found(cell, _replay(load, service, cell.layout))
    except (UserError, LayoutError) as error:
        return Found(cell.layout, load.rate, load.prompt_tokens, unfit=str(error))


def _replay(load: Load, service: Service, name: str) -> Outcome:
    model, gpus = models.load(service.model, kv=service.kv_cache), hardware.parse(service.hardware)
    layout = layouts.parse(name, gpus.num_gpus, base=service.base, threshold_tokens=service.threshold_tokens)
    executor = modelled(model, gpus, layout, service.settings)
    options = service.settings.options(layout, model.max_model_len)
    return replay(name, executor, options, layout.engines * service.replicas, load.arrivals())


def _found(cell: Cell, outcome: Outcome) -> Found:
    measures = outcome.measures
    return Found(
        layout=cell.layout,
        rate=cell.load.rate,
        prompt_tokens=cell.load.prompt_tokens,
        ttft_p50_seconds=measures.ttft.percentile(50),
        ttft_p95_seconds=measures.ttft.percentile(95),
        tpot_p50_seconds=measures.tpot.percentile(50),
        tpot_p95_seconds=measures.tpot.percentile(95),
        tokens_per_second=outcome.per_second(measures.prompt_tokens + measures.output_tokens),
        keeps_up=outcome.keeps_up,
        too_short=outcome.keeps_up and outcome.drain_seconds > KEEPS_UP_SHARE * outcome.arriving_seconds,
        finished=outcome.finished,
        refused=outcome.refused,
    )
