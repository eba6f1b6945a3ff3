"""The answer of `shift-sim paper`: prediction, published figure, error, and how far assumptions move it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from shiftsim.paper import CELLS, Cell

NOTES = (
    "Fitted cells are no evidence: four numbers meet four figures. All others are predicted with the same numbers.",
    "shift TPOT: a lone decode runs in the tp gear here and costs what tp costs; the published implementation pays "
    "8 % more, of its own, for being able to shift.",
    "dp throughput: too low by what an engine of one GPU overlaps and this model adds up: reading the cache of decodes "
    "while prompts are computed.",
    "±20 %: the least and the most that the prediction becomes when any one assumption is 20 % lower or higher.",
)


def table(predicted: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> Table:
    """One line per published figure."""
    page = Table(title="Llama-3.3-70B FP8, 8 H200, 4,096 tokens in and 250 out", title_justify="left")
    for column in ("figure", "published", "predicted", "error", "goal", "±20 %"):
        page.add_column(column, no_wrap=True, justify="left" if column == "figure" else "right")
    for cell in CELLS:
        error = predicted[cell.name] / cell.published - 1
        low, high = ranges.get(cell.name, (None, None))
        page.add_row(
            cell.name,
            shown(cell, cell.published),
            shown(cell, predicted[cell.name]),
            "fitted" if cell.fits else f"[{'green' if abs(error) <= cell.goal else 'red'}]{error:+.1%}[/]",
            "" if cell.fits else f"{cell.goal:.0%}",
            f"{shown(cell, low).split()[0]} – {shown(cell, high).split()[0]}"
            if low is not None and high is not None
            else "",
        )
    return page


def shown(cell: Cell, value: float) -> str:
    """With its unit."""
    if cell.metric == "throughput":
        return f"{value / 1000:.1f}k tok/s"
    return f"{value * 1000:.3g} ms"


def as_json(predicted: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Seconds and tokens per second."""
    return {
        cell.name: {
            "published": cell.published,
            "predicted": predicted[cell.name],
            "error": predicted[cell.name] / cell.published - 1,
            "goal": cell.goal,
            "fitted": bool(cell.fits),
            **({"range": ranges[cell.name]} if cell.name in ranges else {}),
        }
        for cell in CELLS
    }
