"""The answer of `shift-sim replay` for people: a column per layout, and what needs a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from shiftsim.replay import Outcome
from shiftsim.report_words import assumed

SHOWN_PERCENTILES = (50, 90, 99)


def table(title: str, outcomes: Sequence[Outcome]) -> Table:
    page = Table(title=title, title_justify="left")
    page.add_column("")
    for outcome in outcomes:
        # The longest name breaks at its hyphen.
        page.add_column(outcome.layout.replace("-", "-\n"), justify="right")
    columns = [list(_rows(outcome)) for outcome in outcomes]
    for cells in zip(*columns, strict=True):
        page.add_row(cells[0][0], *(text for _, text in cells))
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.gears):
        page.add_row(f"{name}: steps/tokens/time, %", *(_share(outcome, name) for outcome in outcomes))
    return page


def _rows(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """What a row is of, with its unit, and its number."""
    measures = outcome.measures
    yield "keeps up", "[green]yes[/]" if outcome.keeps_up else "[red]no[/]"
    yield "last arrival to last token, s", _short(outcome.drain_seconds)
    yield "requests finished", f"{outcome.finished:,}"
    yield "requests refused", f"{outcome.refused:,}"
    for name, of, factor in (
        ("TTFT p{}, s", measures.ttft, 1),
        ("TPOT p{}, ms", measures.tpot, 1000),
        ("end to end p{}, s", measures.total, 1),
        ("waited p{}, s", measures.queued, 1),
    ):
        for percent in SHOWN_PERCENTILES:
            yield name.format(percent), _short(of.percentile(percent) * factor)
    yield "most waiting at once", f"{outcome.fleet.peak_waiting:,}"
    yield "tokens in, per s", _short(outcome.per_second(measures.prompt_tokens))
    yield "tokens out, per s", _short(outcome.per_second(measures.output_tokens))
    yield "tokens in and out, per s", _short(outcome.per_second(measures.prompt_tokens + measures.output_tokens))
    yield "engines", f"{outcome.engines:,}"
    yield "KV cache each, 1000 tokens", f"{outcome.executor.kv_tokens / 1000:,.0f}"
    yield "preemptions", f"{outcome.preemptions:,}"
    yield "shifts", f"{outcome.shifts:,}"


def notes(outcomes: Sequence[Outcome], unfit: Mapping[str, str]) -> Iterator[str]:
    for name, reason in unfit.items():
        yield f"{name}: not replayed: {reason}"
    yield from assumed(outcomes)
    for outcome in outcomes:
        if outcome.refused:
            yield f"{outcome.layout}: {outcome.fleet.refusals}"
        if not outcome.measures.total.is_exact:
            yield f"{outcome.layout}: percentiles within half a per cent, of a histogram"


def _short(value: float) -> str:
    """Three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share(outcome: Outcome, name: str) -> str:
    shares = outcome.gear_shares(name)
    return "/".join(f"{share * 100:.0f}" for share in shares) if shares else ""
