"""The answer of `shift-sim autoscale`: a column per run, and every change of size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table
from shiftcore.gears import threshold_in_use

from shiftsim.autoscale import ScaledFleet
from shiftsim.measures import Distribution

MOST_EVENTS = 12  # that people are shown; JSON has all


def table(title: str, fleets: Mapping[str, ScaledFleet]) -> Table:
    page = Table(title=title, title_justify="left")
    page.add_column("")
    for name in fleets:
        page.add_column(name, justify="right")
    columns = [list(_rows(fleet)) for fleet in fleets.values()]
    for cells in zip(*columns, strict=True):
        page.add_row(cells[0][0], *(text for _, text in cells))
    return page


def _rows(fleet: ScaledFleet) -> Iterator[tuple[str, str]]:
    measures, slo = fleet.measures, fleet.service.slo
    yield "GPU-hours", f"{fleet.gpu_hours:,.2f}"
    yield f"requests within {_targets(fleet)}", f"{fleet.attainment:.1%}"
    yield f"the service meets them, at p{slo.percentile}", _verdict(fleet)
    yield "pods asked for, least / most", " / ".join(str(f(s.asked for s in fleet.sizes)) for f in (min, max))
    yield "pods holding GPUs, mean", f"{mean_holding(fleet):.2f}"
    ups = sum(event.target > event.source for event in fleet.events)
    yield "changes of size, out / in", f"{ups} / {len(fleet.events) - ups}"
    yield "orders by reason", ", ".join(f"{count} {why}" for why, count in orders(fleet).items()) or "none"
    yield "held back by the gate", f"{fleet.gate_seconds:,.0f} s"
    yield "TTFT p50 / p95 / p99", _percentiles(measures.ttft, 1, "s")
    yield "TPOT p50 / p95 / p99", _percentiles(measures.tpot, 1000, "ms")
    yield "KV cache of a pod", f"{fleet.executor.kv_tokens:,} tokens"
    yield "requests", f"{fleet.arrived:,}"
    yield "refused / cut off", f"{fleet.refused:,} / {fleet.cut_off:,}"
    yield "last token", f"{measures.last_end_seconds:,.0f} s"


def _verdict(fleet: ScaledFleet) -> str:
    if meets(fleet):
        return "[green]yes[/]"
    lost = [f"{count:,} {how}" for count, how in ((fleet.refused, "refused"), (fleet.cut_off, "cut off")) if count]
    return f"[red]no[/], {', '.join(lost)}" if lost else "[red]no[/]"


def notes(fleets: Mapping[str, ScaledFleet]) -> Iterator[str]:
    for name, fleet in fleets.items():
        if fleet.refused:
            yield f"{name}: {fleet.refusals}"
        for event in fleet.events[:MOST_EVENTS]:
            yield f"{name}, at {event.seconds:,.0f} s: {event.source} to {event.target} pods, {event.reason}"
        if len(fleet.events) > MOST_EVENTS:
            yield f"{name}: and {len(fleet.events) - MOST_EVENTS} changes more (--json has all)"


def meets(fleet: ScaledFleet) -> bool:
    """Whether each target holds at its percentile, and nobody was turned away."""
    slo, measures = fleet.service.slo, fleet.measures
    lost = fleet.refused + fleet.cut_off
    return (
        not lost
        and slo.begins_in_time(measures.ttft.percentile(slo.percentile))
        and slo.reads_in_time(measures.tpot.percentile(slo.percentile))
    )


def orders(fleet: ScaledFleet) -> dict[str, int]:
    """How often pods were ordered, by reason, the most frequent first."""
    counts = Counter(event.reason for event in fleet.events if event.target > event.source)
    return dict(sorted(counts.items(), key=lambda order: (-order[1], order[0])))


def mean_holding(fleet: ScaledFleet) -> float:
    """Pods that hold GPUs, over the time from the first moment to the last token."""
    seconds = fleet.measures.last_end_seconds * fleet.service.limits.gpus_per_pod
    return fleet.gpu_seconds / seconds if seconds else 0.0


def as_json(fleet: ScaledFleet) -> dict[str, Any]:
    """Every name has its unit, but for counts."""
    measures, table = fleet.measures, fleet.executor.table
    threshold, source = threshold_in_use(table, fleet.options.policy)
    return {
        "base": table.base.name,
        "threshold": {"tokens": threshold, "source": str(source)},
        "kv_cache_tokens_per_pod": fleet.executor.kv_tokens,
        "gpu_hours": fleet.gpu_hours,
        "requests": {
            "arrived": fleet.arrived,
            "finished": measures.total.count,
            "met_both_targets": measures.met,
            "refused": fleet.refused,
            "cut_off": fleet.cut_off,
        },
        "attainment": fleet.attainment,
        "meets_targets_at_percentile": meets(fleet),
        "ttft_seconds": _quantiles(measures.ttft),
        "tpot_seconds": _quantiles(measures.tpot),
        "duration_seconds": measures.last_end_seconds,
        "mean_pods_holding_gpus": mean_holding(fleet),
        "orders_by_reason": orders(fleet),
        "gate_held_seconds": fleet.gate_seconds,
        "sizes": [asdict(size) for size in fleet.sizes],
        "events": [asdict(event) for event in fleet.events],
    }


def _quantiles(of: Distribution) -> dict[str, float]:
    return {**{f"p{percent}": of.percentile(percent) for percent in (50, 90, 95, 99)}, "max": of.largest}


def _targets(fleet: ScaledFleet) -> str:
    slo = fleet.service.slo
    named = (("TTFT", slo.ttft_seconds), ("TPOT", slo.tpot_seconds))
    return ", ".join(f"{name} {value * 1000:g} ms" for name, value in named if value is not None)


def _percentiles(of: Distribution, factor: float, unit: str) -> str:
    return " / ".join(f"{of.percentile(percent) * factor:,.3g}" for percent in (50, 95, 99)) + f" {unit}"
