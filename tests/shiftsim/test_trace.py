"""Traces: read row by row, replayed whole or refused with line and reason."""

from __future__ import annotations

import gzip
import itertools
import math
import re
from pathlib import Path

import pytest
from shiftsim.errors import TraceError, UserError
from shiftsim.trace import Arrival, Shape, read

TRACES = Path(__file__).parents[2] / "benchmarks" / "traces"

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def trace(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_columns_are_found_by_name_and_others_ignored(tmp_path: Path) -> None:
    path = trace(tmp_path, "client,output_tokens,arrival_s, prompt_tokens\n7,3,0.5,10\n8,0,0.5,1\n")
    assert list(read(path)) == [Arrival(0.5, 10, 3), Arrival(0.5, 1, 0)]


def test_every_committed_trace_is_listed_with_its_requests_and_licence() -> None:
    rows = [line.split(" | ") for line in (TRACES / "README.md").read_text().splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `"): int(row[1].replace(",", "")) for row in rows}
    assert listed == {path.name: sum(1 for _ in read(path)) for path in TRACES.glob("*.csv*")}
    licences = [re.search(r"\((LICENSE-.*?)\)|^the same", row[3]) for row in rows]
    assert all(found and (TRACES / (found[1] or "README.md")).exists() for found in licences)


def test_gzip_and_plain_files_read_alike(tmp_path: Path) -> None:
    text = HEADER + "".join(f"{i / 8},{i + 1},{i}\n" for i in range(500))
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert list(read(packed)) == list(read(trace(tmp_path, text)))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("0,10,5\n2,10,5\n1,10,5\n", r"trace\.csv, line 4: arrival_s 1 is before 2 .*sort"),
        ("0,10,5\n-1,10,5\n", r"line 3: arrival_s -1 must be 0 or more"),
        ("0,10,5\nnan,10,5\n", r"line 3: arrival_s nan must be 0 or more and finite"),
        ("inf,10,5\n", r"line 2: arrival_s inf"),
        ("0,-10,5\n", r"line 2: prompt_tokens -10 is outside 1\.\."),
        ("0,0,5\n", r"line 2: prompt_tokens 0 is outside 1\.\."),
        ("0,10,-5\n", r"line 2: output_tokens -5 is outside 0\.\."),
        ("0,10,99999999999\n", r"line 2: output_tokens 99999999999 is outside"),
        ("0,10,5\n\n1,ten,5\n", r"line 4: prompt_tokens 'ten' is not a whole number"),
        ("0,10,5.5\n", r"line 2: output_tokens '5\.5' is not a whole number"),
        ("soon,10,5\n", r"line 2: arrival_s 'soon' is not a number"),
        ("0,10\n", r"line 2: 2 fields"),
        ('0,10,"5\n', r"after line \d: damaged"),
    ],
)
def test_a_bad_row_is_named_by_line_and_reason(tmp_path: Path, rows: str, reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        list(read(trace(tmp_path, HEADER + rows)))


@pytest.mark.parametrize("header", ["", "arrival_s,prompt_tokens\n", "0,10,5\n"])
def test_a_missing_column_is_named(tmp_path: Path, header: str) -> None:
    with pytest.raises(TraceError, match=r"line 1: no column .*output_tokens"):
        list(read(trace(tmp_path, header)))


def test_damage_in_a_gzip_file_is_named_and_ends_the_replay(tmp_path: Path) -> None:
    rows = "".join(f"{i},{(i * 7919) % 10007 + 1},{(i * 104729) % 997}\n" for i in range(5000))
    whole = gzip.compress((HEADER + rows).encode())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(flipped), whole[:-4] + b"\0\0\0\0", b"no gzip at all"):
        path = tmp_path / "trace.csv.gz"
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match=r"trace\.csv\.gz, (after )?line \d+"):
            list(read(path))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match="not UTF-8 text"):
        list(read(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv: No such file"):
        list(read(tmp_path / "none.csv"))


def test_a_window_and_a_rate_move_the_clock(tmp_path: Path) -> None:
    path = trace(tmp_path, HEADER + "".join(f"{second},{second + 1},1\n" for second in range(10)))
    found = list(read(path, Shape(start_seconds=2, end_seconds=6, speed=2)))
    assert found == [Arrival(0.0, 3, 1), Arrival(0.5, 4, 1), Arrival(1.0, 5, 1), Arrival(1.5, 6, 1)]


def test_grouped_arrivals_are_spread_in_order_without_loss(tmp_path: Path) -> None:
    rows = [(3.0 * (i // 20), i + 1) for i in range(400)]
    path = trace(tmp_path, HEADER + "".join(f"{at},{tokens},1\n" for at, tokens in rows))
    shape = Shape(spread_seconds=4.5, seed=3)
    found = list(read(path, shape))
    assert sorted(a.prompt_tokens for a in found) == [tokens for _, tokens in rows]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(found))
    recorded = {tokens: at for at, tokens in rows}
    assert all(0 <= a.seconds - recorded[a.prompt_tokens] <= 4.5 for a in found)
    assert found == list(read(path, shape))
    assert found != list(read(path, Shape(spread_seconds=4.5, seed=4)))


@pytest.mark.parametrize(
    "shape",
    [
        {"start_seconds": 5.0, "end_seconds": 5.0},
        {"start_seconds": -1.0},
        {"start_seconds": math.nan},
        {"speed": 0.0},
        {"speed": math.inf},
        {"spread_seconds": -1.0},
    ],
)
def test_a_shape_that_cannot_be_replayed_is_refused(shape: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Shape(**shape)  # type: ignore[arg-type]
