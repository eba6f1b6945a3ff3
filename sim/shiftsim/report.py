"""The answer of `shift-sim` as one HTML page that needs nothing else: style, plots and data are inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from shiftsim import report_words
from shiftsim.errors import UserError
from shiftsim.replay import Outcome
from shiftsim.report_charts import Chart, charts

STYLES = 8  # colours and dashes that the page has; further lines begin again
_DIGITS = 4  # of a point in a plot
# Inside a script element nothing else can end it, or begin a comment in it.
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Report:
    """``asked``: the settings by name, as in the JSON answer; ``unfit``: why a layout was not replayed."""

    title: str
    asked: Mapping[str, object]
    outcomes: Sequence[Outcome]
    unfit: Mapping[str, str] = field(default_factory=dict)


def check_path(path: Path) -> None:
    """Before a long replay; raises UserError where no file can be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--html {path}: name a file in a folder that exists")


def write(path: Path, report: Report) -> None:
    """Raises UserError."""
    try:
        path.write_text(html(report), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path} cannot be written: {error.strerror}") from error


def html(report: Report) -> str:
    """The same report gives the same bytes."""
    drawn = charts(report.outcomes)
    fields = {
        "TITLE": escape(report.title),
        "HEADLINE": escape(report_words.headline(report.outcomes)),
        "SUMMARY": "\n".join(f"<p>{escape(text)}</p>" for text in report_words.summary(report.outcomes)),
        "CARDS": "\n".join(_cards(report)),
        "TABLE": "\n".join(_table(report)),
        "FIGURES": "\n".join(_figures(drawn)),
        "SETTINGS": "\n".join(_settings(report)),
        "HONESTY": "\n".join(f"<p>{escape(text)}</p>" for text in report_words.honesty(report.outcomes)),
        "VERSION": escape(_version()),
        "DATA": embedded([_as_data(chart) for chart in drawn]),
        "UPLOT_LICENSE": _file("uplot/LICENSE").strip(),
        "UPLOT_CSS": _file("uplot/uPlot.min.css"),
        "UPLOT_JS": _file("uplot/uPlot.iife.min.js"),
        "CSS": _file("report/report.css"),
        "JS": _file("report/report.js"),
    }
    return _filled(_file("report/report.html"), fields)


def embedded(data: object) -> str:
    """JSON for inside a script element, whatever the strings in it hold."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """What a field brings is not looked at again, so that no text of a user is taken for a field."""
    parts = template.split("@@")
    return "".join(part if number % 2 == 0 else fields[part] for number, part in enumerate(parts))


def _version() -> str:
    try:
        return metadata.version("shift-sim")
    except metadata.PackageNotFoundError:
        return "from a checkout that is not installed"


def _file(name: str) -> str:
    return resources.files("shiftsim").joinpath("data").joinpath(name).read_text(encoding="utf-8")


def _cards(report: Report) -> Iterator[str]:
    for number, outcome in enumerate(report.outcomes):
        ttft, tpot = outcome.measures.ttft.percentile(95), outcome.measures.tpot.percentile(95)
        state, words = ("up", "✓ keeps up") if outcome.keeps_up else ("down", "✕ drowns")
        facts = {
            "TTFT p95": report_words.duration(ttft),
            "TPOT p95": report_words.duration(tpot),
            "drained in": report_words.duration(outcome.drain_seconds),
        }
        listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
        yield (
            f'<article class="card s{number % STYLES}"><h2>{escape(outcome.layout)}</h2>'
            f'<p class="state {state}">{words}</p><dl>{listed}</dl></article>'
        )
    for name, reason in report.unfit.items():
        yield (
            f'<article class="card unfit"><h2>{escape(name)}</h2><p class="state none">– not replayed</p>'
            f"<p>{escape(reason)}</p></article>"
        )


def _table(report: Report) -> Iterator[str]:
    names = "".join(f'<th scope="col">{escape(outcome.layout)}</th>' for outcome in report.outcomes)
    yield f'<thead><tr><th scope="col"><span class="hidden">measure</span></th>{names}</tr></thead><tbody>'
    for row in report_words.rows(report.outcomes):
        if row.group:
            heading = f'<th scope="rowgroup" colspan="{1 + len(row.cells)}"><span>{escape(row.group)}</span></th>'
            yield f'<tr class="group">{heading}</tr>'
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        yield f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>'
    yield "</tbody>"


def _figures(drawn: Sequence[Chart]) -> Iterator[str]:
    for number, chart in enumerate(drawn):
        names = ", ".join(line.name for line in chart.lines)
        label = escape(f"{chart.title}: {chart.y.label} against {chart.x.label}, for {names}")
        yield (
            f"<figure><figcaption><h3>{escape(chart.title)}</h3><p>{escape(chart.note)}</p></figcaption>"
            f'<div class="plot" role="img" aria-label="{label}" data-chart="{number}"></div></figure>'
        )


def _settings(report: Report) -> Iterator[str]:
    for name, value in report_words.settings(report.asked):
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"


def _as_data(chart: Chart) -> dict[str, Any]:
    return {
        "x": asdict(chart.x),
        "y": asdict(chart.y),
        "at": [_short(value) for value in chart.at],
        "lines": [
            {"name": line.name, "style": line.style % STYLES, "values": [_short(value) for value in line.values]}
            for line in chart.lines
        ],
        "stacked": chart.stacked,
        "mark": chart.mark,
    }


def _short(value: float | None) -> float | None:
    """As few digits as a plot shows."""
    if value is None:
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
