"""The answer of `shift-sim replay` for people: a column per layout, and what needs a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from shiftsim.measures import Distribution
from shiftsim.replay import Outcome


def table(title: str, outcomes: Sequence[Outcome]) -> Table:
    page = Table(title=title, title_justify="left")
    page.add_column("")
    for outcome in outcomes:
        page.add_column(outcome.layout, justify="right")
    columns = [list(_rows(outcome)) for outcome in outcomes]
    for cells in zip(*columns, strict=True):
        page.add_row(cells[0][0], *(text for _, text in cells))
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.gears):
        page.add_row(f"{name}: steps / tokens / time", *(_share(outcome, name) for outcome in outcomes))
    return page


def _rows(outcome: Outcome) -> Iterator[tuple[str, str]]:
    measures = outcome.measures
    yield "keeps up", "[green]yes[/]" if outcome.keeps_up else "[red]no[/]"
    yield "drained after the last arrival", f"{outcome.drain_seconds:,.1f} s"
    yield "requests finished", f"{outcome.finished:,}"
    yield "refused, never fit", f"{outcome.refused:,}"
    yield "TTFT p50 / p90 / p99", _percentiles(measures.ttft, 1, "s")
    yield "TPOT p50 / p90 / p99", _percentiles(measures.tpot, 1000, "ms")
    yield "end to end p50 / p90 / p99", _percentiles(measures.total, 1, "s")
    yield "waited p50 / p90 / p99", _percentiles(measures.queued, 1, "s")
    yield "most waiting at once", f"{outcome.fleet.peak_waiting:,}"
    rates = (outcome.per_second(tokens) for tokens in (measures.prompt_tokens, measures.output_tokens))
    yield "tokens in / out", " / ".join(f"{rate:,.0f}" for rate in rates) + " per s"
    yield "tokens in and out", f"{outcome.per_second(measures.prompt_tokens + measures.output_tokens):,.0f} per s"
    yield "preemptions", f"{outcome.preemptions:,}"
    engines = f"{outcome.engines} × " if outcome.engines > 1 else ""
    yield "KV cache", f"{engines}{outcome.executor.kv_tokens:,} tokens"
    yield "shifts", f"{outcome.shifts:,}"


def notes(outcomes: Sequence[Outcome], unfit: Mapping[str, str]) -> Iterator[str]:
    for name, reason in unfit.items():
        yield f"{name}: not replayed: {reason}"
    for outcome in outcomes:
        for reason, requests in list(outcome.fleet.refusals.items())[:1]:
            more = f" and {outcome.refused - requests:,} for a like reason" if outcome.refused > requests else ""
            yield f"{outcome.layout}: {requests:,} refused, {reason}{more}"
        if not outcome.measures.total.is_exact:
            yield f"{outcome.layout}: percentiles within half a per cent, of a histogram"


def _percentiles(of: Distribution, factor: float, unit: str) -> str:
    return " / ".join(_short(of.percentile(percent) * factor) for percent in (50, 90, 99)) + f" {unit}"


def _short(value: float) -> str:
    """Three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share(outcome: Outcome, name: str) -> str:
    gears = outcome.gears
    if name not in gears:
        return "–"
    use, all_ = gears[name], gears.values()
    shares = (
        use.steps / sum(other.steps for other in all_),
        use.tokens / sum(other.tokens for other in all_),
        use.seconds / sum(other.seconds for other in all_),
    )
    return " / ".join(f"{share:.0%}" for share in shares)
