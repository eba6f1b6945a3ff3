"""`shift-sim paper`: the published figures against what is predicted of the same runs."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console
from rich.progress import track

from shiftsim import hardware, named_options, paper, paper_page
from shiftsim.errors import UserError
from shiftsim.executor.fitted import published_fit
from shiftsim.paper import Assumptions
from shiftsim.paper_page import Played

RANGE_REQUESTS = 1000  # a quarter: what an assumption does to throughput shows as well with fewer

EPILOG = """\
Examples:
  shift-sim paper               every figure, with the range under +-20 % of every assumption (some minutes)
  shift-sim paper --no-ranges   the figures alone (half a minute)
  shift-sim paper --fit         the four numbers, fitted anew, as they belong into fitted.toml
"""


def add(parser: argparse.ArgumentParser) -> None:
    named_options.remember(parser)
    add_argument = parser.add_argument
    add_argument("--requests", type=int, default=paper.REQUESTS, metavar="N",
                 help="that come at once where throughput is measured (default: %(default)s)")  # fmt: skip
    add_argument("--no-ranges", action="store_true", help="leave out how far the assumptions move the predictions")
    add_argument("--fit", action="store_true", help="fit the four numbers and print them")
    add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.epilog, parser.description = EPILOG, paper.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=run)


def run(options: argparse.Namespace, console: Console) -> None:
    """Raises UserError."""
    if options.requests < 1:
        raise UserError(f"--requests {options.requests} must be at least 1")
    if options.fit:
        named_options.refuse(options, ("--requests",), "with --fit, which plays none", "leave it out")
        for name, value in vars(paper.refit(hardware.software())).items():
            print(f"{name} = {value:.6g}")
        return
    assumed = Assumptions(hardware.software(), published_fit())
    predicted = paper.predict(assumed, options.requests)
    played, varied, ranges = Played(options.requests), {}, {}
    if not options.no_ranges:
        varied = paper.variations(assumed.software)
        played = Played(options.requests, min(options.requests, RANGE_REQUESTS), tuple(varied))
        ranges = _ranges(predicted, assumed, varied, played.of_ranges)
    if options.json:
        print(json.dumps(paper_page.as_json(predicted, ranges, played), sort_keys=True, indent=1))
        return
    console.print(paper_page.table(predicted, ranges, played))
    for note in paper_page.notes(played):
        console.print(f"- {note}", highlight=False)


def _ranges(
    predicted: Mapping[str, float], base: Assumptions, varied: Mapping[str, Assumptions], requests: int
) -> dict[str, tuple[float, float]]:
    """Least and most of each prediction when one assumption is off; what it does with fewer requests, in proportion."""
    assumed = [base, *varied.values()]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        runs = pool.map(paper.predict, assumed, [requests] * len(assumed))
        shown = track(runs, "assumptions", len(assumed), console=Console(stderr=True), transient=True)
        first, *others = list(shown)
    found = {}
    for name, value in predicted.items():
        ratios = [1.0, *(other[name] / first[name] for other in others)]
        found[name] = (value * min(ratios), value * max(ratios))
    return found
