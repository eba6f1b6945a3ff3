"""Options of the command line that name targets."""

from __future__ import annotations

import argparse

from shiftsim.errors import UserError
from shiftsim.slo import Slo


def add_slo(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of the targets")
    add = group.add_argument
    add("--ttft-ms", type=float, metavar="MS", help="time to the first token that a request is to meet")
    add("--tpot-ms", type=float, metavar="MS", help="time per token after the first that it is to meet")
    add("--percentile", type=int, default=95, metavar="PERCENT", help="of the requests (default: %(default)s)")


def slo(options: argparse.Namespace) -> Slo:
    """Raises UserError."""
    if options.ttft_ms is None and options.tpot_ms is None:
        raise UserError("no target is named; give --ttft-ms, --tpot-ms or both")
    return Slo(_seconds(options.ttft_ms), _seconds(options.tpot_ms), options.percentile)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def numbers(text: str, option: str, names: str) -> tuple[float, ...]:
    """Read ``30,300`` for names such as ``OUT,IN``; raises UserError."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != len(names.split(",")) or any(not 0 <= value < float("inf") for value in found):
        raise UserError(f"{option} {text!r} is not {names}: write seconds from 0 on with commas between them")
    return found
