"""Traces of requests: CSV files with arrival and lengths, plain or gzip, read one row at a time.

A trace is replayed whole or not at all: a row that cannot be read ends the replay with its line and the reason.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TextIO

from shiftsim.errors import TraceError, UserError

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
MAX_TOKENS = 1 << 31  # far above any context; a larger number is a damaged row


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. ``seconds`` since the start of the replay."""

    seconds: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Shape:
    """How a trace is replayed: which part of it, how fast, and with which noise.

    ``speed`` 2 lets the same requests arrive in half the time. ``spread_seconds`` moves each arrival later by a random
    part of it, for traces whose clock is coarse and would otherwise be replayed as batches.
    """

    start_seconds: float = 0.0
    end_seconds: float = math.inf
    speed: float = 1.0
    spread_seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start_seconds < self.end_seconds:
            raise UserError(
                f"the window from {self.start_seconds:g} s to {self.end_seconds:g} s is empty; "
                "give a start of at least 0 and a later end"
            )
        if not (0 < self.speed < math.inf):
            raise UserError(f"a speed of {self.speed:g} must be above 0; 1 replays the trace as recorded")
        if not (0 <= self.spread_seconds < math.inf):
            raise UserError(f"{self.spread_seconds:g} s to spread arrivals over must be 0 or more")


AS_RECORDED = Shape()


def read(path: Path, shape: Shape = AS_RECORDED) -> Iterator[Arrival]:
    """Requests in order of arrival; raises TraceError at the row that cannot be replayed."""
    inside = _window(_rows(path), shape)
    for row in _spread(inside, shape) if shape.spread_seconds else inside:
        seconds = (row.seconds - shape.start_seconds) / shape.speed
        yield Arrival(seconds, row.prompt_tokens, row.output_tokens)


def _window(rows: Iterator[Arrival], shape: Shape) -> Iterator[Arrival]:
    for row in rows:
        if row.seconds >= shape.end_seconds:
            return
        if row.seconds >= shape.start_seconds:
            yield row


def _spread(rows: Iterator[Arrival], shape: Shape) -> Iterator[Arrival]:
    """Keeps only those back that a later row may overtake."""
    random = Random(shape.seed)  # noqa: S311 - noise, no secret
    held: list[tuple[float, int, Arrival]] = []
    for number, row in enumerate(rows):
        while held and held[0][0] <= row.seconds:
            yield heapq.heappop(held)[2]
        seconds = row.seconds + random.random() * shape.spread_seconds
        heapq.heappush(held, (seconds, number, Arrival(seconds, row.prompt_tokens, row.output_tokens)))
    while held:
        yield heapq.heappop(held)[2]


def _rows(path: Path) -> Iterator[Arrival]:
    """Every row as it is in the file."""
    try:
        with _open(path) as file:
            yield from _parse(path, file)
    except OSError as error:
        # A damaged gzip file is an OSError too, but that one has been named by its line.
        raise TraceError(f"{path}: {error.strerror or error}") from error


def _open(path: Path) -> TextIO:
    # A byte-order mark, as spreadsheets write it, is no part of the first column's name.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _parse(path: Path, file: TextIO) -> Iterator[Arrival]:
    reader = csv.reader(file, strict=True)
    last = 0.0
    try:
        places = _places(path, next(reader, []))
        for fields in reader:
            if not fields:
                continue  # an empty line, as at the end of a file
            row = _row(fields, places, f"{path}, line {reader.line_num}")
            if row.seconds < last:
                raise TraceError(
                    f"{path}, line {reader.line_num}: arrival_s {row.seconds:g} is before {last:g} of the row above; "
                    "sort the trace by arrival_s"
                )
            last = row.seconds
            yield row
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise TraceError(f"{path}, after line {reader.line_num}: damaged ({what}); fetch the file again") from error


def _places(path: Path, header: list[str]) -> tuple[int, int, int]:
    """Where the columns are; others are ignored."""
    names = [name.strip() for name in header]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise TraceError(
            f"{path}, line 1: no column {', '.join(missing)} among {', '.join(names) or 'nothing'}; "
            f"a trace has the columns {', '.join(COLUMNS)}"
        )
    arrival, prompt, output = (names.index(name) for name in COLUMNS)
    return arrival, prompt, output


def _row(fields: list[str], places: tuple[int, int, int], where: str) -> Arrival:
    if len(fields) <= max(places):
        raise TraceError(f"{where}: {len(fields)} fields, where the header promises {max(places) + 1} or more")
    arrival, prompt, output = (fields[place] for place in places)
    return Arrival(
        _seconds(arrival, where), _tokens("prompt_tokens", prompt, 1, where), _tokens("output_tokens", output, 0, where)
    )


def _seconds(text: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise TraceError(f"{where}: arrival_s {text!r} is not a number of seconds") from None
    if not 0 <= seconds < math.inf:
        raise TraceError(f"{where}: arrival_s {text.strip()} must be 0 or more and finite")
    return seconds


def _tokens(name: str, text: str, least: int, where: str) -> int:
    try:
        tokens = int(text)
    except ValueError:
        raise TraceError(f"{where}: {name} {text[:40]!r} is not a whole number") from None
    if not least <= tokens < MAX_TOKENS:
        raise TraceError(f"{where}: {name} {tokens} is outside {least}..{MAX_TOKENS - 1}")
    return tokens
