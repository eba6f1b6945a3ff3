"""What the report says in words and in its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shiftcore.gears import threshold_in_use

from shiftsim.executor.measured import MeasuredExecutor
from shiftsim.executor.modelled import ModelledExecutor
from shiftsim.measures import Distribution
from shiftsim.replay import KEEPS_UP_SECONDS, KEEPS_UP_SHARE, PERCENTILES, Outcome

_REAL = (
    "The scheduler, the block manager and the choice of gears are the code that serves in a cluster; the clock is "
    "virtual. The requests are those of the trace, by arrival and by length; their text is not needed."
)
_MODELLED = (
    "Modelled, not measured: how long a step takes, from the shapes of the model, published figures of the hardware "
    "and four numbers that were fitted once on published latencies of another model; and what the KV cache holds, from "
    "the memory of the GPUs. Expect errors of some 10 % (see shift-sim paper)."
)
_MEASURED = (
    "How long a step takes is measured: it comes from the calibration of a running pod. What context costs beyond what "
    "was calibrated is interpolated."
)
_LEFT_OUT = (
    "Not in the model: the network to the clients, failures, start-up, and prefix caching. The balancer knows the "
    "load of every engine at once, which favours layouts of many engines a little."
)
_NAMES = {
    "trace name": "Trace",
    "trace speed": "Arrivals faster by (factor)",
    "trace spread_seconds": "Arrivals spread over",
    "trace seed": "Seed",
    "trace start_seconds": "From second",
    "trace end_seconds": "To second",
    "settings max_num_seqs": "Requests at once, per engine",
    "settings max_batched_tokens": "Token budget of a step",
    "settings max_model_len": "Longest request (tokens)",
    "settings memory_fraction": "Share of GPU memory used",
    "settings kv_memory_percent": "Share of free GPU memory for the cache (%)",
    "settings copies": "Second copy of the weights",
    "settings tpot_target_seconds": "TPOT target (s)",
    "settings overlap": "Steps planned ahead",
    "settings kv_cache": "Numbers of the KV cache",
    "settings step_seconds": "Added to each step, planned ahead or not (s)",
}


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[str, ...]  # one per layout
    group: str = ""  # stands above the row, where it is the first of its kind


def headline(outcomes: Sequence[Outcome]) -> str:
    kept = [outcome.layout for outcome in outcomes if outcome.keeps_up]
    drowned = [outcome.layout for outcome in outcomes if not outcome.keeps_up]
    if not drowned:
        return "Every layout keeps up" if len(kept) > 1 else f"{kept[0]} keeps up"
    if not kept:
        return "No layout keeps up" if len(drowned) > 1 else f"{drowned[0]} drowns"
    return f"{_joined(kept)} {_verb(kept, 'keep')} up; {_joined(drowned)} {_verb(drowned, 'drown')}"


def summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Sentences below the headline."""
    first = outcomes[0]
    asked = first.measures.prompt_tokens / max(1, first.finished)
    yield (
        f"{first.fleet.arrived:,} requests arrive in {duration(first.arriving_seconds)}, with {asked:,.0f} prompt "
        "tokens on average."
    )
    kept = [outcome for outcome in outcomes if outcome.keeps_up and outcome.finished]
    if len(kept) > 1:
        fast = min(kept, key=lambda outcome: outcome.measures.ttft.percentile(95))
        smooth = min(kept, key=lambda outcome: outcome.measures.tpot.percentile(95))
        ttft, tpot = fast.measures.ttft.percentile(95), smooth.measures.tpot.percentile(95)
        who = "it also" if smooth is fast else f"{smooth.layout}"
        yield (
            f"Of those that keep up, {fast.layout} answers first: 95 % of its requests have their first token within "
            f"{duration(ttft)}; {who} writes fastest, within {duration(tpot)} per token for 95 %."
        )
    slowest = max(outcomes, key=lambda outcome: outcome.drain_seconds)
    if not slowest.keeps_up:
        yield f"{slowest.layout} needs another {duration(slowest.drain_seconds)} after the last arrival to catch up."
    yield (
        f"To keep up is to finish within {KEEPS_UP_SHARE:.0%} of the trace's time, or {KEEPS_UP_SECONDS:.0f} s, after "
        "the last arrival."
    )


def honesty(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Which numbers come from where."""
    modelled = isinstance(outcomes[0].executor, ModelledExecutor)
    return (_MODELLED if modelled else _MEASURED, *assumed(outcomes), _REAL, _LEFT_OUT)


def assumed(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What nobody measured of pods that are."""
    for executor in (outcome.executor for outcome in outcomes[:1]):
        if isinstance(executor, MeasuredExecutor) and executor.kv_assumed:
            yield (
                f"The KV cache is taken to be large enough ({executor.kv_tokens:,} tokens: all requests that run at "
                "once, at their longest). A calibration file does not tell its size; an answer of GetState does, or "
                "give --kv-tokens."
            )


def rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Of the table; a cell per outcome."""
    yield _row("keeps up", ["yes" if o.keeps_up else "no" for o in outcomes])
    yield _row("drained after the last arrival", [duration(o.drain_seconds) for o in outcomes])
    yield _row("requests finished", [f"{o.finished:,}" for o in outcomes])
    yield _row("refused, never fit", [f"{o.refused:,}" for o in outcomes])
    yield from _percentiles("Time to first token (TTFT)", [o.measures.ttft for o in outcomes])
    yield from _percentiles("Time per output token (TPOT)", [o.measures.tpot for o in outcomes])
    yield from _percentiles("End to end", [o.measures.total for o in outcomes])
    yield from _percentiles("In the queue", [o.measures.queued for o in outcomes])
    prompts = [f"{o.per_second(o.measures.prompt_tokens):,.0f}" for o in outcomes]
    yield _row("prompt tokens per second", prompts, "Throughput, from the first arrival to the last token")
    yield _row("output tokens per second", [f"{o.per_second(o.measures.output_tokens):,.0f}" for o in outcomes])
    yield _row("engines", [f"{o.engines:,}" for o in outcomes], "Engines")
    yield _row("KV cache per engine (tokens)", [f"{o.executor.kv_tokens:,}" for o in outcomes])
    yield _row("most waiting at once", [f"{o.fleet.peak_waiting:,}" for o in outcomes])
    yield _row("preemptions", [f"{o.preemptions:,}" for o in outcomes])
    yield _row("shifts of gear", [f"{o.shifts:,}" for o in outcomes])
    yield _row("policy", [_policy(o) for o in outcomes])
    group = "Gears: share of steps / of tokens / of busy time"
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.gears):
        yield _row(name, [_share(outcome, name) for outcome in outcomes], group)
        group = ""


def settings(asked: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """What was asked, as of ``--json``, by name; what was not set is left out."""
    for key, value in asked.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from settings(value, f"{name} ")
        elif value is not None:
            yield _NAMES.get(name, key.replace("_", " ").capitalize()), _value(value)


def duration(seconds: float) -> str:
    if seconds < 0.9995:
        milli = seconds * 1000
        return f"{milli:.0f} ms" if milli >= 100 else f"{milli:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _percentiles(group: str, of: Sequence[Distribution]) -> Iterator[Row]:
    for percent in PERCENTILES:
        name = f"p{percent}" if all(one.is_exact for one in of) else f"p{percent}, within half a per cent"
        yield _row(name, [duration(one.percentile(percent)) for one in of], group)
        group = ""
    yield _row("mean", [duration(one.mean) for one in of])
    yield _row("largest", [duration(one.largest) for one in of])


def _row(name: str, cells: Sequence[str], group: str = "") -> Row:
    return Row(name, tuple(cells), group)


def _policy(outcome: Outcome) -> str:
    table = outcome.executor.table
    if outcome.options.policy.gear or len(table.gears) == 1:
        return "one gear"
    threshold, source = threshold_in_use(table, outcome.options.policy)
    return f"base gear above {threshold:,} tokens ({source})"


def _share(outcome: Outcome, name: str) -> str:
    shares = outcome.gear_shares(name)
    return " / ".join(f"{share:.0%}" for share in shares) if shares else "–"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def _verb(names: Sequence[str], verb: str) -> str:
    return verb if len(names) > 1 else f"{verb}s"
