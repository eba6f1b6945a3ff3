"""What is printed: for people on a terminal, plain for pipes, JSON for programs."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shiftoperator.kubectl.health import Health

STYLES = {Health.OK: "green", Health.RESTING: "dim", Health.WAITING: "yellow", Health.ATTENTION: "bold red"}
LOAD_STYLES = {"idle": "dim", "low": "green", "medium": "green", "high": "yellow", "full": "bold red"}
# Wider than any line: what a program reads is neither wrapped nor cut.
_PLAIN_WIDTH = 20_000
# What a pod or a user wrote must not steer the terminal: control and bidirectional characters, halves of characters.
_STEERS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(said: object) -> str:
    return _STEERS.sub("\ufffd", re.sub(r"[\n\r\t]+", " ", "" if said is None else str(said)))


def text(said: object, style: str = "") -> Text:
    return Text(clean(said), style)


def heading(said: str) -> Text:
    return text(said, "bold")


def section(said: str) -> Text:
    """A heading after other parts."""
    return Text(f"\n{clean(said)}", "bold")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], indent: int = 0) -> RenderableType:
    """Columns side by side, without lines; no heading where all names are empty. The last column may wrap."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns), header_style="dim")
    for place, name in enumerate(columns):
        last = place == len(columns) - 1
        made.add_column(name, no_wrap=not last, overflow="fold" if last else "ellipsis")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else text(cell) for cell in row))
    return Padding(made, (0, 0, 0, indent), expand=False)


def paragraph(said: str, indent: int = 0, style: str = "") -> RenderableType:
    return Padding(text(said, style), (0, 0, 0, indent), expand=False)


def show(*parts: RenderableType) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(Group(*parts))
    else:
        print(plain(*parts))


def clear() -> None:
    """Of a terminal; elsewhere what was printed stays."""
    Console().clear()


def plain(*parts: RenderableType) -> str:
    """Without colours, wrapping and spaces at the end of lines."""
    held = io.StringIO()
    console = Console(file=held, width=_PLAIN_WIDTH, highlight=False, markup=False, emoji=False, no_color=True)
    console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in held.getvalue().rstrip("\n").split("\n"))


def show_json(told: Any, one_line: bool = False) -> None:
    # Escaped: what others wrote must not steer a terminal.
    print(json.dumps(told, indent=None if one_line else 2), flush=True)


def note(said: str) -> None:
    """Beside the result: progress and refusals."""
    print(clean(said), file=sys.stderr, flush=True)


def progress(said: str, as_json: bool) -> None:
    """Of a verb that does something: for people it is the result, for programs it goes beside it."""
    note(said) if as_json else print(clean(said), flush=True)


def now() -> datetime:
    return datetime.now(UTC)


def age(time: str | None) -> str:
    """Since then, as kubectl writes it; empty when it is not known."""
    try:
        since = datetime.fromisoformat((time or "").replace("Z", "+00:00"))
        seconds = int((now() - since).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return ""
    return duration(max(0, seconds))


def duration(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
