"""Says what is in a trace: requests, duration, lengths of prompts and outputs, and how bursty the arrivals are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from shiftsim.errors import UserError
from shiftsim.measures import Distribution
from shiftsim.trace import Arrival

PERCENTILES = (50, 95, 99, 100)
_BIN_SECONDS = 10.0


@dataclass(frozen=True)
class Lengths:
    """Tokens: sum, mean, and by percentile; beyond a million requests that is within half a per cent."""

    total: int
    mean: float
    percentiles: tuple[int, ...]  # as PERCENTILES


@dataclass(frozen=True)
class Description:
    requests: int
    seconds: float  # from the first arrival to the last
    prompt: Lengths
    output: Lengths
    peak_prompt_tokens_per_second: float  # over the busiest 10 s


def describe(arrivals: Iterable[Arrival]) -> Description:
    """Reads the trace to its end; raises UserError when no request is in it."""
    prompts, outputs = Distribution(), Distribution()
    first = last = peak = 0.0
    place = tokens = 0  # the ten seconds of the last arrival, and what came in them
    for arrival in arrivals:
        first, last = (first if prompts.count else arrival.seconds), arrival.seconds
        prompts.add(arrival.prompt_tokens)
        outputs.add(arrival.output_tokens)
        before, place = place, int((last - first) // _BIN_SECONDS)
        tokens = arrival.prompt_tokens + (tokens if place == before else 0)
        peak = max(peak, tokens / _BIN_SECONDS)
    if not prompts.count:
        raise UserError("no request in this part of the trace; widen --start and --end")
    return Description(prompts.count, last - first, _lengths(prompts), _lengths(outputs), peak)


def as_json(found: Description) -> dict[str, object]:
    names = [f"p{percentile}" for percentile in PERCENTILES]
    lengths = {
        f"{name}_tokens": {"sum": of.total, "mean": of.mean, **dict(zip(names, of.percentiles, strict=True))}
        for name, of in (("prompt", found.prompt), ("output", found.output))
    }
    return {
        "requests": found.requests,
        "duration_seconds": found.seconds,
        "peak_prompt_tokens_per_second": found.peak_prompt_tokens_per_second,
        **lengths,
    }


def table(name: str, found: Description) -> Table:
    shown = Table(title=name, caption=_caption(found))
    for column in ("tokens", "sum", "mean", *(f"p{percentile}" for percentile in PERCENTILES[:-1]), "max"):
        shown.add_column(column, justify="left" if column == "tokens" else "right")
    for what, of in (("prompt", found.prompt), ("output", found.output)):
        shown.add_row(what, f"{of.total:,}", f"{of.mean:,.0f}", *(f"{value:,}" for value in of.percentiles))
    return shown


def _caption(found: Description) -> str:
    rate = f", {found.requests / found.seconds:.2f} per second" if found.seconds else ""
    return (
        f"{found.requests:,} requests in {found.seconds:,.1f} s{rate}; "
        f"busiest 10 s: {found.peak_prompt_tokens_per_second:,.0f} prompt tokens per second"
    )


def _lengths(tokens: Distribution) -> Lengths:
    found = (tokens.largest if percent == 100 else tokens.percentile(percent) for percent in PERCENTILES)
    return Lengths(round(tokens.total), tokens.mean, tuple(round(length) for length in found))
