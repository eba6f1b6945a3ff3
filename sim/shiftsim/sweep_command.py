"""`shift-sim sweep`: rates, lengths of prompts and layouts, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shiftsim import hardware, layouts, models, named_options, trace
from shiftsim.errors import UserError
from shiftsim.progress import bars
from shiftsim.replay_command import add_engine, refuse_idle_gears, settings
from shiftsim.sweep import Cell, Found, Load, Service, run
from shiftsim.trace_options import Renamed, add_shape, shape

DESCRIPTION = """\
Replays a load once for each rate, length of prompts and layout. The load is a Poisson process of equal requests, with
--rates in requests per second; or a trace, at each of --speeds times its own, whose lengths hold unless --prompts are
given. A cell is red that does not keep up: then its latencies grow with the length of the load. A cell is yellow whose
load is too short to tell: it drains within a minute, but in more than a tenth of the load's time.
"""
EPILOG = """\
Examples:
  shift-sim sweep --model llama-3.3-70b-fp8 --hardware 8xH200 --rates 1,4,8 --prompts 1000,8000 --output 250
  shift-sim sweep --model llama-3.3-70b-fp8 --hardware 8xH200 --trace day.csv --speeds 0.5,1,2 \\
      --layout tp --layout shift
"""


# What only one kind of load has.
OF_TRACE = ("--speeds", "--start", "--end", "--speed", "--spread")
OF_RATES = ("--output", "--requests")


def add(parser: argparse.ArgumentParser) -> None:
    named_options.remember(parser)
    add_argument = parser.add_argument
    add_argument("--model", required=True, metavar="NAME|CONFIG.JSON", help="as of shift-sim replay")
    add_argument("--hardware", required=True, metavar="8xH200", help="GPUs of one replica")
    add_argument("--layout", action="append", metavar="LAYOUT", help="may be given more than once (default: "
                 + ", ".join(layouts.NAMES) + ")")  # fmt: skip
    add_argument("--replicas", type=int, default=1, metavar="N", help="pods behind one balancer (default: 1)")
    add_argument("--rates", metavar="R,R", help="requests per second of a Poisson process")
    add_argument("--prompts", metavar="N,N", help="prompt tokens of every request")
    add_argument("--output", type=int, default=250, metavar="N", help="tokens of every answer (default: %(default)s)")
    add_argument("--requests", type=int, default=1000, metavar="N", help="per cell (default: %(default)s)")
    add_argument("--trace", type=Path, metavar="FILE", help="instead of --rates: " + ", ".join(trace.COLUMNS))
    add_argument("--speeds", default="1", metavar="X,X", help="of the trace, as factors; times --speed (default: 1)")
    add_argument("--scales", action=Renamed, new="--speeds")
    add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: %(default)s)")
    add_argument("--json", action="store_true", help="one JSON object instead of a table; the same bytes each time")
    add_engine(parser, measured_pods=False)
    add_shape(parser)
    parser.epilog, parser.description = EPILOG, DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=sweep)


def sweep(options: argparse.Namespace, console: Console) -> None:
    """Raises UserError."""
    cells = _cells(options)
    found = []
    with bars() as progress:
        task = progress.add_task("sweep", total=len(cells))
        for result in run(cells, options.workers):
            found.append(result)
            progress.advance(task)
    if all(result.unfit for result in found):
        raise UserError("; ".join(dict.fromkeys(f"{result.layout}: {result.unfit}" for result in found)))
    if options.json:
        print(json.dumps(_json(options, cells[0].service, found), sort_keys=True, indent=1))
        return
    console.print(_table(options, found))
    short = sum(result.too_short for result in found)
    if short:
        more = "more of the trace" if options.trace else "more --requests"
        console.print(f"{short} of {len(found)} loads are too short to tell who keeps up; give {more}", highlight=False)
    for note in dict.fromkeys(f"{result.layout}: not replayed: {result.unfit}" for result in found if result.unfit):
        console.print(note, highlight=False)


def _cells(options: argparse.Namespace) -> list[Cell]:
    """Layout by layout within a load; raises UserError."""
    if (options.trace is None) == (options.rates is None):
        raise UserError("a sweep needs a load: give either --rates with --prompts, or --trace")
    if options.trace is None and options.prompts is None:
        raise UserError("--rates needs the length of the requests; give --prompts")
    if options.trace is None:
        named_options.refuse(options, OF_TRACE, "with --rates", "leave it out, or give --trace in place of --rates")
    else:
        named_options.refuse(
            options, OF_RATES, "with --trace, whose answers and requests are its own",
            "leave it out, or give --rates with --prompts in place of --trace",
        )  # fmt: skip
    for name, value in (("--replicas", options.replicas), ("--workers", options.workers)):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    service = Service(
        options.model, options.kv_cache, options.hardware, options.replicas, options.threshold, options.base,
        settings(options),
    )  # fmt: skip
    gpus = hardware.parse(options.hardware).num_gpus
    models.load(options.model, kv=options.kv_cache)
    names = list(dict.fromkeys(options.layout or layouts.NAMES))
    for name in names:
        layouts.parse(name, gpus, base=options.base)
    refuse_idle_gears(options, names)
    rates = _positive(options.speeds if options.trace else options.rates, "--speeds" if options.trace else "--rates")
    prompts = [_whole(p, "--prompts") for p in _positive(options.prompts, "--prompts")] if options.prompts else [0]
    loads = [
        Load(rate, prompt, options.output, options.requests, options.trace, shape(options))
        for rate in rates
        for prompt in prompts
    ]
    if next(loads[0].arrivals(), None) is None:
        raise UserError(f"{options.trace}: no request in this part of the trace; widen --start and --end")
    return [Cell(service, load, name) for load in loads for name in names]


def _positive(text: str, option: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or any(not 0 < value < float("inf") for value in found):
        raise UserError(f"{option} {text!r} must be numbers above 0 with commas between them")
    return found


def _whole(value: float, option: str) -> int:
    if value != int(value):
        raise UserError(f"{option} {value:g} is no whole number of tokens")
    return int(value)


def _table(options: argparse.Namespace, found: Sequence[Found]) -> Table:
    title = f"{Path(options.model).name} · {options.replicas} × {options.hardware} · "
    title += options.trace.name if options.trace else f"{options.requests:,} requests, {options.output:,} tokens out"
    page = Table(title=title, title_justify="left")
    headings = ("trace ×" if options.trace else "req/s", "prompt\ntokens", "layout", "TTFT\np50 s", "TTFT\np95 s",
                "TPOT\np50 ms", "TPOT\np95 ms", "tokens/s\nin+out", "refused")  # fmt: skip
    for heading in headings:
        page.add_column(heading, justify="left" if heading == "layout" else "right")
    for result in found:
        page.add_row(*_row(result), style=_style(result))
    return page


def _style(found: Found) -> str:
    if found.unfit:
        return ""
    return "red" if not found.keeps_up else "yellow" if found.too_short else ""


def _row(found: Found) -> tuple[str, ...]:
    load = (f"{found.rate:g}", f"{found.prompt_tokens:,}" if found.prompt_tokens else "own", found.layout)
    if found.unfit:
        return (*load, *("–" * 6))
    return (
        *load,
        *(f"{seconds:,.3g}" for seconds in (found.ttft_p50_seconds, found.ttft_p95_seconds)),
        *(f"{seconds * 1000:,.3g}" for seconds in (found.tpot_p50_seconds, found.tpot_p95_seconds)),
        f"{found.tokens_per_second:,.0f}",
        f"{found.refused:,}",
    )


def _json(options: argparse.Namespace, service: Service, found: Sequence[Found]) -> dict[str, object]:
    return {
        "load": {
            "trace": _trace(options) if options.trace else None,
            "rate_unit": "times the trace" if options.trace else "requests per second",
            "output_tokens": None if options.trace else options.output,
            "requests": None if options.trace else options.requests,
            "seed": options.seed,
        },
        "model": Path(options.model).name,
        "hardware": options.hardware,
        "replicas": options.replicas,
        "threshold_tokens": service.threshold_tokens,
        "base": service.base or layouts.parse("shift", hardware.parse(options.hardware).num_gpus).base.name,
        "settings": {**asdict(service.settings), "kv_cache": options.kv_cache},
        "cells": [result.as_json() for result in found],
    }


def _trace(options: argparse.Namespace) -> dict[str, object]:
    """Which part of it, and at which speed times that of a cell."""
    return {"name": options.trace.name, **{k: v for k, v in asdict(shape(options)).items() if v != float("inf")}}
