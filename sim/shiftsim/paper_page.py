"""The answer of `shift-sim paper`: prediction, published figure, error, and how far assumptions move it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from shiftsim import layouts, paper
from shiftsim.paper import CELLS, SETTINGS, Cell

NOTES = (
    "Fitted cells are no evidence: four numbers meet four figures. Nor are the two of shift that are equal to one: the "
    "same gear on the same work, whose error is the distance of two published figures. The other six are predicted.",
    "shift TPOT: a lone decode runs in the tp gear here and costs what tp costs; the published implementation pays "
    "8 % more, of its own, for being able to shift.",
    "dp throughput: too low by what an engine of one GPU overlaps and this model adds up: reading the cache of decodes "
    "while prompts are computed. That explains about 10 of the 14 % that are missing; the rest is not explained.",
)


@dataclass(frozen=True)
class Played:
    """How many requests the throughput runs have, and those of the ranges; ``varied``: the variations by name."""

    requests: int
    of_ranges: int = 0
    varied: tuple[str, ...] = ()

    @property
    def capped(self) -> tuple[str, ...]:
        return tuple(name.removesuffix(paper.CAPPED) for name in self.varied if name.endswith(paper.CAPPED))


def notes(played: Played) -> Iterator[str]:
    yield from NOTES
    if played.varied:
        yield (
            "±20 %: the least and the most that the prediction becomes when any one assumption or setting of the run "
            "is 20 % lower or higher, a tile half or twice as large."
        )
        yield f"Only so far, up to the whole: {', '.join(played.capped)}."
    if played.of_ranges and played.of_ranges < played.requests:
        yield (
            f"Ranges of throughput come from runs with {played.of_ranges:,} requests, and are scaled to the "
            f"prediction with {played.requests:,}."
        )


def table(predicted: Mapping[str, float], ranges: Mapping[str, tuple[float, float]], played: Played) -> Table:
    """One line per published figure."""
    page = Table(title=_title(played), title_justify="left")
    for column in ("figure", "published", "predicted", "error", "goal", "±20 %"):
        page.add_column(column, no_wrap=True, justify="left" if column == "figure" else "right")
    for cell in CELLS:
        low, high = ranges.get(cell.name, (None, None))
        page.add_row(
            cell.name,
            shown(cell, cell.published),
            shown(cell, predicted[cell.name]),
            _judged(cell, predicted[cell.name] / cell.published - 1),
            f"{cell.goal:.0%}" if cell.predicted else "",
            f"{shown(cell, low).split()[0]} – {shown(cell, high).split()[0]}"
            if low is not None and high is not None
            else "",
        )
    return page


def _title(played: Played) -> str:
    return (
        "Llama-3.3-70B FP8, 8 H200, 4,096 tokens in and 250 out\n"
        f"{SETTINGS.memory_fraction:.2f} of the memory, {SETTINGS.max_batched_tokens:,} tokens per step, "
        f"{SETTINGS.max_num_seqs:,} sequences, a second copy of the weights, threshold "
        f"{layouts.DEFAULT_THRESHOLD_TOKENS}, steps planned one by one\n"
        f"throughput: {played.requests:,} requests at once"
    )


def _judged(cell: Cell, error: float) -> str:
    if cell.fits:
        return "fitted"
    if cell.equals:
        return f"{error:+.1%}, is {cell.equals}"
    return f"[{'green' if abs(error) <= cell.goal else 'red'}]{error:+.1%}[/]"


def shown(cell: Cell, value: float) -> str:
    """With its unit."""
    if cell.metric == "throughput":
        return f"{value / 1000:.1f}k tok/s"
    return f"{value * 1000:.3g} ms"


def as_json(
    predicted: Mapping[str, float], ranges: Mapping[str, tuple[float, float]], played: Played
) -> dict[str, Any]:
    """Seconds and tokens per second."""
    return {
        "model": paper.MODEL,
        "hardware": paper.HARDWARE,
        "run": {
            "prompt_tokens": paper.PROMPT_TOKENS,
            "output_tokens": paper.OUTPUT_TOKENS,
            "threshold_tokens": layouts.DEFAULT_THRESHOLD_TOKENS,
            "requests": played.requests,
            "requests_of_ranges": played.of_ranges or None,
            "settings": asdict(SETTINGS),
        },
        "variations": list(played.varied),
        "figures": {
            cell.name: {
                "published": cell.published,
                "predicted": predicted[cell.name],
                "error": predicted[cell.name] / cell.published - 1,
                "goal": cell.goal if cell.predicted else None,
                "fitted": bool(cell.fits),
                "equals": cell.equals or None,
                **({"range": ranges[cell.name]} if cell.name in ranges else {}),
            }
            for cell in CELLS
        },
    }
