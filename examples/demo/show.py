"""What the demo prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from shiftprotos.v1 import control_pb2

# Tables need room where the output is no terminal.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def phase(number: int, title: str) -> None:
    console.print(f"\n[bold cyan]{number}. {title}[/]")


def say(text: str) -> None:
    console.print(f"   {text}", markup=False, soft_wrap=True)


def steps_per_gear(states: dict[str, control_pb2.GetStateResponse]) -> None:
    table = Table(title="Steps and tokens per gear", title_justify="left")
    for name in ("pod", "gear", "steps", "tokens", "tokens/step", "busy s"):
        table.add_column(name, justify="left" if name in ("pod", "gear") else "right")
    for pod, state in states.items():
        for gear in state.gears:
            per_step = f"{gear.tokens / gear.steps:.1f}" if gear.steps else "–"
            table.add_row(pod, gear.name, str(gear.steps), str(gear.tokens), per_step, f"{gear.busy_seconds:.1f}")
        table.add_row(pod, f"[dim]{state.shifts} shifts[/]", "", "", "", "")
    console.print(table)


def costs(states: dict[str, control_pb2.GetStateResponse]) -> None:
    for pod, state in states.items():
        table = Table(title=f"T(n) of {pod}: median ± spread, ms", title_justify="left")
        table.add_column("tokens", justify="right")
        for gear in state.gears:
            table.add_column(gear.name, justify="right")
        columns = [{point.tokens: point for point in gear.costs} for gear in state.gears]
        for n in sorted(columns[0]):
            cells = [f"{c[n].median_seconds * 1e3:.1f} ± {c[n].spread_seconds * 1e3:.1f}" for c in columns]
            table.add_row(str(n), *cells)
        console.print(table)
        say(crossover(state))


def crossover(state: control_pb2.GetStateResponse) -> str:
    found = state.crossover
    measured = f"crossover at {found.tokens} tokens" if found.tokens else f"no crossover ({found.reason})"
    source = control_pb2.ThresholdSource.Name(state.threshold_source).removeprefix("THRESHOLD_SOURCE_").lower()
    pinned = state.threshold_source == control_pb2.THRESHOLD_SOURCE_PINNED  # a threshold may be 0
    in_use = "pinned" if pinned else f"threshold in use: {state.threshold_tokens} (source: {source})"
    return f"{measured}: {found.message}; {in_use}"


def latencies(rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    table = Table(title="Latency, as the client saw it, ms", title_justify="left")
    for name in ("requests", "outcomes", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95"):
        table.add_column(name, justify="left" if name in ("requests", "outcomes") else "right")
    for name, figures in rows:
        ends = [f"{count} {code}" for code, count in figures["outcomes"].items()]
        outcomes = ", ".join([*ends, *(f"{count} refused: {code}" for code, count in figures["refused"].items())])
        keys = ("ttft_p50_ms", "ttft_p95_ms", "tpot_p50_ms", "tpot_p95_ms")
        cells = ["–" if figures[key] is None else f"{figures[key]:.0f}" for key in keys]
        table.add_row(name, outcomes, *cells)
    console.print(table)


def path(values: Sequence[int]) -> str:
    return " → ".join(map(str, values))


def checks(results: dict[str, bool]) -> None:
    console.print()
    for name, passed in results.items():
        console.print(f"   {'[green]seen[/]  ' if passed else '[bold red]MISSED[/]'}  {name}")
