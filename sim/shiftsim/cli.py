"""The command line: one subcommand per question, each with its own help."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from shiftsim import autoscale_command, describe, paper_command, replay_command, sweep_command, trace, whatif_command
from shiftsim.trace_options import add_shape, shape

EPILOG = """\
Examples:
  shift-sim trace benchmarks/traces/azure2023_code_15min.csv.gz
      what is in a trace: how many requests, how long, how large, how bursty
  shift-sim replay --trace benchmarks/traces/azure2023_code_15min.csv.gz --model llama-3.3-70b-fp8 --hardware 8xH200
      who keeps up with it, and at which latencies, in every layout
  shift-sim sweep --model llama-3.3-70b-fp8 --hardware 8xH200 --rates 1,4,8 --prompts 1000,8000
      where each layout is the fastest, and where it drowns
  shift-sim whatif llama.yaml --trace day.csv --hardware 8xH200
      the smallest fleet that meets spec.slo, with shift and without
  shift-sim autoscale --trace day.csv --model llama-3.3-70b-fp8 --hardware 8xH200 --max 6 --ttft-ms 2000 --tpot-ms 100
      what shifting before scaling saves, and what it costs in latency
  shift-sim paper --no-ranges
      how near the model comes to what was published, before you trust it
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
    replay_command.add(commands.add_parser("replay", help="play a trace to layouts, side by side"))
    sweep_command.add(commands.add_parser("sweep", help="rates, lengths of prompts and layouts, side by side"))
    whatif_command.add(commands.add_parser("whatif", help="the fewest GPUs on which a resource meets its targets"))
    autoscale_command.add(
        commands.add_parser("autoscale", help="play a trace to the autoscaler, with shift and without")
    )
    paper_command.add(commands.add_parser("paper", help="hold the model against the published figures"))
    return parser


def _add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="FILE", help="CSV or CSV.GZ with " + ", ".join(trace.COLUMNS))
    add_shape(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(command=_trace)


def _trace(options: argparse.Namespace, console: Console) -> None:
    found = describe.describe(trace.read(options.trace, shape(options)))
    if options.json:
        print(json.dumps(describe.as_json(found), sort_keys=True, indent=1))
    else:
        console.print(describe.table(options.trace.name, found))
