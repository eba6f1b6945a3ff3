"""Options of the command line that say how a trace is replayed."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from shiftsim import trace


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Options of how a trace is replayed."""
    group = parser.add_argument_group("of the trace")
    add = group.add_argument
    add("--start", type=float, default=0.0, metavar="SECONDS", help="leave out what arrives before (default: 0)")
    add("--end", type=float, default=float("inf"), metavar="SECONDS", help="leave out what arrives from then on")
    add(
        "--speed", type=float, default=1.0, metavar="FACTOR",
        help="2 lets the same requests arrive in half the time (default: 1)",
    )  # fmt: skip
    add("--rate", action=Renamed, new="--speed")
    add(
        "--spread", type=float, default=0.0, metavar="SECONDS",
        help="move each arrival later by a random part of this; for traces whose clock is coarse, such as Mooncake's "
        "with one instant every 3 s (default: 0, as recorded)",
    )  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of that random part (default: 0)")


class Renamed(argparse.Action):
    """An option that has another name now: refused, and not taken for the beginning of another one."""

    def __init__(self, option_strings: list[str], dest: str, new: str) -> None:
        super().__init__(option_strings, dest, help=argparse.SUPPRESS, default=argparse.SUPPRESS)
        self._new = new

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(f"{self.option_strings[0]} has another name; give {self._new}")


def shape(options: argparse.Namespace) -> trace.Shape:
    """Raises UserError."""
    return trace.Shape(options.start, options.end, options.speed, options.spread, options.seed)
