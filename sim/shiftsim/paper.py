"""What the published evaluation measured, and what this simulator says of the same runs (arXiv 2509.16495, section 4).

Four latencies fit the four numbers of executor/fitted.py, and two of the shift layout follow from them by construction;
the other six figures are predicted. Where the paper is
silent on how a run was set up, it is taken to be as its implementation does by default (vLLM 0.10.1): 0.90 of the
memory, 8,192 tokens per step, 1,024 sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from shiftcore.gears import choose

from shiftsim import hardware, layouts, models
from shiftsim.executor.fitted import Fitted, fit
from shiftsim.executor.modelled import ModelledExecutor
from shiftsim.hardware import Software
from shiftsim.layouts import Layout
from shiftsim.planning import Settings, modelled
from shiftsim.replay import replay
from shiftsim.trace import Arrival
from shiftsim.work import Work

MODEL = "llama-3.3-70b-fp8"
HARDWARE = "8xH200"
PROMPT_TOKENS, OUTPUT_TOKENS = 4096, 250
SETTINGS = Settings(max_num_seqs=1024, max_batched_tokens=8192, memory_fraction=0.90, copies=True, overlap=False)
SET = ("max_num_seqs", "max_batched_tokens", "memory_fraction")  # what the paper does not say of them
REQUESTS = 4000  # at once, where throughput is measured


@dataclass(frozen=True)
class Cell:
    """One published figure: seconds for latencies, tokens (in and out) per second for throughput."""

    layout: str
    metric: str
    published: float
    goal: float = 0.10  # largest relative error that we are content with
    fits: str = ""  # the number that it was used for
    equals: str = ""  # the fitted cell whose step it is: the same gear on the same work

    @property
    def name(self) -> str:
        return f"{self.layout} {self.metric}"

    @property
    def predicted(self) -> bool:
        """Whether it is evidence: neither fitted nor equal to what was."""
        return not self.fits and not self.equals


CELLS = (
    Cell("tp", "TTFT", 0.159, fits="all_reduce_of_link"),
    Cell("tp", "TPOT", 0.00934, fits="host_seconds"),
    Cell("sp", "TTFT", 0.103, fits="linear_of_peak"),
    Cell("sp", "TPOT", 0.0325, fits="all_to_all_seconds"),
    Cell("dp", "TTFT", 0.614, goal=0.15),
    Cell("dp", "TPOT", 0.0225, goal=0.15),
    Cell("shift", "TTFT", 0.102, equals="sp TTFT"),
    Cell("shift", "TPOT", 0.0101, equals="tp TPOT"),
    Cell("dp", "throughput", 45_900, goal=0.15),
    Cell("tp", "throughput", 24_700),
    Cell("sp", "throughput", 37_200),
    Cell("shift", "throughput", 37_400),
)


CAPPED = " (all of it)"  # behind the name of a variation that ends at the whole


class Assumptions(NamedTuple):
    """``settings``: how the published runs are taken to have been set up."""

    software: Software
    fitted: Fitted
    settings: Settings = SETTINGS


def executor(layout: Layout, assumptions: Assumptions) -> ModelledExecutor:
    """For one engine of a layout."""
    software, fitted, run = assumptions
    return modelled(models.load(MODEL), hardware.parse(HARDWARE), layout, run, software, fitted)


def layout_of(cell: Cell) -> Layout:
    return layouts.parse(cell.layout, hardware.parse(HARDWARE).num_gpus)


def ttft(layout: Layout, pod: ModelledExecutor) -> float:
    """Seconds to the first token of a prompt that comes alone: tokenize, then one step."""
    pairs = PROMPT_TOKENS * (PROMPT_TOKENS + 1) // 2
    gear = choose(PROMPT_TOKENS, pod.table, layout.policy)
    return pod.tokenize_seconds(PROMPT_TOKENS) + pod.seconds(gear, Work(PROMPT_TOKENS, pairs, 0, 0, 1))


def tpot(layout: Layout, pod: ModelledExecutor) -> float:
    """Mean seconds of the steps that make all tokens but the first, of one request alone.

    The cost of a step is linear in its context, so that the mean is that of the mean context.
    """
    gear = choose(1, pod.table, layout.policy)
    return pod.seconds(gear, Work(0, 0, 1, PROMPT_TOKENS + OUTPUT_TOKENS // 2, 1))


LATENCIES: Mapping[str, Callable[[Layout, ModelledExecutor], float]] = {"TTFT": ttft, "TPOT": tpot}


def throughput(layout: Layout, pod: ModelledExecutor, requests: int = REQUESTS, settings: Settings = SETTINGS) -> float:
    """Tokens in and out per second, of requests that come all at once, to the last token of the last."""
    model = models.load(MODEL)
    arrivals = (Arrival(0.0, PROMPT_TOKENS, OUTPUT_TOKENS) for _ in range(requests))
    outcome = replay(layout.name, pod, settings.options(layout, model.max_model_len), layout.engines, arrivals)
    return outcome.per_second(outcome.measures.prompt_tokens + outcome.measures.output_tokens)


def refit(software: Software) -> Fitted:
    """The four numbers from their four cells."""

    def of(cell: Cell) -> Callable[[Fitted], float]:
        layout, latency = layout_of(cell), LATENCIES[cell.metric]
        pod = executor(layout, Assumptions(software, Fitted(0.5, 0.005, 0.5, 1e-5)))
        return lambda fitted: latency(layout, replace(pod, fitted=fitted))

    return fit({cell.fits: (of(cell), cell.published) for cell in CELLS if cell.fits})


def predict(assumptions: Assumptions, requests: int = REQUESTS) -> dict[str, float]:
    """Every cell, by name, under some assumptions; without requests no throughput."""
    found = {}
    for cell in CELLS:
        layout = layout_of(cell)
        pod = executor(layout, assumptions)
        if cell.metric in LATENCIES:
            found[cell.name] = LATENCIES[cell.metric](layout, pod)
        elif requests:
            found[cell.name] = throughput(layout, pod, requests, assumptions.settings)
    return found


def variations(software: Software, percent: int = 20) -> dict[str, Assumptions]:
    """Every assumption that much lower and higher, and the four numbers fitted anew each time.

    A share of a peak is at most 1, which the name of such a variation says; a tile is half or twice as large. The
    fitted numbers and the settings of the runs move too, without a fit: no fitted cell depends on these settings.
    """
    found: dict[str, Assumptions] = {}
    fitted = refit(software)
    for sign in (-1, 1):
        factor = 1 + sign * percent / 100
        # The published runs plan steps one by one: the engine's own time is a part of the fitted host's there.
        floats = (field.name for field in fields(Software) if field.type == "float")
        for name in (name for name in floats if not name.startswith("engine_seconds")):
            change = _moved(software, name, factor)
            moved = replace(software, **{name: change})  # type: ignore[arg-type]
            found[_named(software, name, change)] = Assumptions(moved, refit(moved))
        for name in (field.name for field in fields(Fitted)):
            change = _moved(fitted, name, factor)
            found[_named(fitted, name, change)] = Assumptions(software, replace(fitted, **{name: change}))
        for name in SET:
            change = _moved(SETTINGS, name, factor)
            settings = replace(SETTINGS, **{name: change})  # type: ignore[arg-type]
            found[_named(SETTINGS, name, change)] = Assumptions(software, fitted, settings)
    for tile in (software.tile // 2, software.tile * 2):
        moved = replace(software, tile=tile)
        found[f"tile {tile}"] = Assumptions(moved, refit(moved))
    return found


def _moved(numbers: Software | Fitted | Settings, name: str, factor: float) -> float:
    before = getattr(numbers, name)
    value: float = before * factor
    if isinstance(before, int):
        return round(value)
    return min(1.0, value) if "_of_" in name or name.endswith("_fraction") else value


def _named(numbers: Software | Fitted | Settings, name: str, value: float) -> str:
    change = f"{name} {value / getattr(numbers, name) - 1:+.0%}".replace("%", " %")
    return change + CAPPED if value == 1.0 else change
