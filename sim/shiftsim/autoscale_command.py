"""`shift-sim autoscale`: a trace to a fleet that grows and shrinks, with and without shift-before-scale."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from shiftcore.scaling import Limits

from shiftsim import layouts, trace
from shiftsim.autoscaled import ScaledFleet, Targets, as_json
from shiftsim.errors import UserError
from shiftsim.replay_command import add_engine, add_pods, plan, show_progress
from shiftsim.trace_options import add_shape, shape

DESCRIPTION = """\
Plays a trace to pods under the real autoscaler, three times over:

  shift before scale   pods that shift; one is added when their throughput gear is nearly full, and not before
  scale first          the same pods, under an autoscaler that takes the tp gear's capacity for theirs
  tp pods              pods that never shift

and says how many GPU-hours each took, and which share of the requests met both targets.
"""
EPILOG = """\
Example:
  shift-sim autoscale --trace day.csv.gz --model llama-3.3-70b-fp8 --hardware 8xH200 --max-replicas 8 --ttft-ms 2000 \
--tpot-ms 50
"""
# Name, layout, whether pods are let shift before others are ordered.
FLEETS = (
    ("shift before scale", "shift-calibrated", True),
    ("scale first", "shift-calibrated", False),
    ("tp pods", "tp", False),
)


def add(parser: argparse.ArgumentParser) -> None:
    add_pods(parser)
    group = parser.add_argument_group("of the autoscaler")
    add, default = group.add_argument, Limits()
    add("--min-replicas", type=int, default=1, metavar="N", help="ready from the beginning (default: 1)")
    add("--max-replicas", type=int, default=8, metavar="N", help="(default: 8)")
    add("--ttft-ms", type=float, required=True, metavar="MS", help="target of the time to the first token")
    add("--tpot-ms", type=float, required=True, metavar="MS", help="target of the time per token after it")
    add("--percentile", type=int, default=95, choices=(50, 90, 95, 99), help="of the pods' times that the autoscaler "
        "compares with them (default: 95)")  # fmt: skip
    add("--start-seconds", type=float, default=180.0, metavar="S", help="from a pod's order to its first request "
        "(default: 180)")  # fmt: skip
    add("--out-seconds", type=float, default=default.out_seconds, metavar="S",
        help="a reason to add pods must hold for so long (default: %(default)g)")  # fmt: skip
    add("--in-seconds", type=float, default=default.in_seconds, metavar="S",
        help="a reason to take one away must hold for so long (default: %(default)g)")  # fmt: skip
    add_engine(parser)
    add_shape(parser)
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=run)


def run(options: argparse.Namespace, console: Console) -> None:
    """Raises UserError."""
    fleets = _replay(options)
    if options.json:
        print(json.dumps(_json(options, fleets), sort_keys=True, indent=1))
    else:
        console.print(_table(options, fleets))


def _replay(options: argparse.Namespace) -> dict[str, ScaledFleet]:
    played, pods, targets, limits = shape(options), plan(options), _targets(options), _limits(options)
    arrivals = trace.count(options.trace, played)
    fleets = {}
    with show_progress() as progress:
        for name, layout_name, shift_first in FLEETS:
            base = options.base or pods.base
            layout = layouts.parse(layout_name, pods.ranks, base=base, threshold_tokens=options.threshold)
            executor, engine = pods.engine(layout)
            fleet = ScaledFleet(executor, engine, limits, targets, options.start_seconds, shift_first=shift_first)
            task = progress.add_task(name, total=arrivals)
            fleet.replay(
                trace.read(options.trace, played),
                lambda arrived, task=task: progress.update(task, completed=arrived),  # type: ignore[misc]
            )
            fleets[name] = fleet
    return fleets


def _targets(options: argparse.Namespace) -> Targets:
    if not (options.ttft_ms > 0 and options.tpot_ms > 0):
        raise UserError(f"--ttft-ms {options.ttft_ms:g} and --tpot-ms {options.tpot_ms:g} must be above 0")
    return Targets(options.ttft_ms / 1000, options.tpot_ms / 1000, options.percentile)


def _limits(options: argparse.Namespace) -> Limits:
    if not 1 <= options.min_replicas <= options.max_replicas:
        bounds = f"--min-replicas {options.min_replicas} and --max-replicas {options.max_replicas}"
        raise UserError(f"{bounds} must be ascending and at least 1")
    for name in ("start_seconds", "out_seconds", "in_seconds"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name):g} must be 0 or more")
    return Limits(
        minimum=options.min_replicas,
        maximum=options.max_replicas,
        out_seconds=options.out_seconds,
        in_seconds=options.in_seconds,
    )


def _table(options: argparse.Namespace, fleets: dict[str, ScaledFleet]) -> Table:
    title = f"{options.trace.name}: TTFT {options.ttft_ms:g} ms, TPOT {options.tpot_ms:g} ms, pods start in "
    page = Table(title=f"{title}{options.start_seconds:g} s", title_justify="left")
    page.add_column("")
    for name in fleets:
        page.add_column(name.replace(" ", "\n", 1), justify="right")
    every = fleets.values()
    rows = (
        ("GPU-hours", [f"{fleet.gpu_hours:,.1f}" for fleet in every]),
        ("requests within both targets, %", [f"{fleet.attainment * 100:.2f}" for fleet in every]),
        ("requests refused", [f"{fleet.refused:,}" for fleet in every]),
        ("most pods at once", [f"{fleet.peak_pods}" for fleet in every]),
        ("pods ordered", [f"{fleet.orders}" for fleet in every]),
        *((f"TTFT p{p}, s", [f"{fleet.measures.ttft.percentile(p):,.2f}" for fleet in every]) for p in (50, 95, 99)),
        *((f"TPOT p{p}, ms", [f"{fleet.measures.tpot.percentile(p) * 1000:,.1f}" for fleet in every])
          for p in (50, 95, 99)),
    )  # fmt: skip
    for name, cells in rows:
        page.add_row(name, *cells)
    return page


def _json(options: argparse.Namespace, fleets: dict[str, ScaledFleet]) -> dict[str, object]:
    return {
        "trace": options.trace.name,
        "model": Path(options.model).name if options.model else None,
        "hardware": options.hardware,
        "measured": options.measured.name if options.measured else None,
        "targets": {"ttft_seconds": options.ttft_ms / 1000, "tpot_seconds": options.tpot_ms / 1000},
        "replicas": {"minimum": options.min_replicas, "maximum": options.max_replicas},
        "start_seconds": options.start_seconds,
        "fleets": [as_json(name, fleet) for name, fleet in fleets.items()],
    }
