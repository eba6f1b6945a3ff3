"""Says what is in a trace: requests, duration, lengths of prompts and outputs, and how bursty the arrivals are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from shiftsim.errors import UserError
from shiftsim.trace import Arrival

PERCENTILES = (50, 95, 99, 100)
_BIN_SECONDS = 10.0


@dataclass(frozen=True)
class Lengths:
    """Tokens: sum, mean, and by percentile."""

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
    prompts, outputs, bins = array("q"), array("q"), array("q")
    first = last = 0.0
    for arrival in arrivals:
        first, last = (first if prompts else arrival.seconds), arrival.seconds
        prompts.append(arrival.prompt_tokens)
        outputs.append(arrival.output_tokens)
        place = int((last - first) // _BIN_SECONDS)
        bins.extend([0] * (place + 1 - len(bins)))
        bins[place] += arrival.prompt_tokens
    if not prompts:
        raise UserError("no request in this part of the trace; widen --start and --end")
    return Description(len(prompts), last - first, _lengths(prompts), _lengths(outputs), max(bins) / _BIN_SECONDS)


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


def _lengths(tokens: array[int]) -> Lengths:
    ordered = sorted(tokens)
    ranks = (max(0, -(-len(ordered) * percentile // 100) - 1) for percentile in PERCENTILES)
    return Lengths(sum(ordered), sum(ordered) / len(ordered), tuple(ordered[rank] for rank in ranks))
