"""The command line: one subcommand per question, each with its own help."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from shiftsim import describe, trace

EPILOG = """\
Examples:
  shift-sim trace benchmarks/traces/azure2023_code_15min.csv.gz
      what is in a trace: how many requests, how long, how large, how bursty
"""


def run(arguments: Sequence[str]) -> None:
    """Raises UserError for what cannot be used; argparse exits with 2 for a command line that it cannot read."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, Console], None] = options.command
    command(options, Console())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shift-sim",
        description="What shift parallelism does for your traffic, before you buy the GPUs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_trace(commands.add_parser("trace", help="say what is in a trace", description=describe.__doc__))
    return parser


def _add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="FILE", help="CSV or CSV.GZ with " + ", ".join(trace.COLUMNS))
    add_shape(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(command=_trace)


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Options of how a trace is replayed."""
    group = parser.add_argument_group("of the trace")
    add = group.add_argument
    add("--start", type=float, default=0.0, metavar="SECONDS", help="leave out what arrives before (default: 0)")
    add("--end", type=float, default=float("inf"), metavar="SECONDS", help="leave out what arrives from then on")
    add(
        "--rate", type=float, default=1.0, metavar="FACTOR",
        help="2 lets the same requests arrive in half the time (default: 1)",
    )  # fmt: skip
    add(
        "--spread", type=float, default=0.0, metavar="SECONDS",
        help="move each arrival later by a random part of this; for traces whose clock is coarse, such as Mooncake's "
        "with one instant every 3 s (default: 0, as recorded)",
    )  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of that random part (default: 0)")


def shape(options: argparse.Namespace) -> trace.Shape:
    """Raises UserError."""
    return trace.Shape(options.start, options.end, options.rate, options.spread, options.seed)


def _trace(options: argparse.Namespace, console: Console) -> None:
    found = describe.describe(trace.read(options.trace, shape(options)))
    if options.json:
        print(json.dumps(describe.as_json(found), sort_keys=True, indent=1))
    else:
        console.print(describe.table(options.trace.name, found))
