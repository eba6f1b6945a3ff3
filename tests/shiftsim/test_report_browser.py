"""The HTML report in a real browser: every line of every plot is drawn, and nothing is refused or fails."""

from __future__ import annotations

import json
import os
import re
from html import unescape
from pathlib import Path

import pytest
from helpers import chromium
from helpers.linear_executor import SP2, TP2, LinearExecutor
from shiftcore.policy import Policy
from shiftsim import report
from shiftsim.engine import EngineOptions
from shiftsim.replay import Outcome, replay
from shiftsim.report import Report
from shiftsim.trace import Arrival

OPTIONS = EngineOptions(max_num_seqs=8, max_batched_tokens=256, max_model_len=2048)
LEAST_PIXELS = 30  # of a line's colour: a line across a plot has thousands


@pytest.fixture(scope="module")
def browser() -> str:
    found = chromium.find()
    if found is None and "e2e" in os.environ.get("SHIFT_REQUIRE", ""):
        missing = chromium.why_not_installed()
        if missing:
            pytest.fail(missing)
        found = chromium.find()
    if found is None:
        pytest.skip("chromium is missing; SHIFT_REQUIRE=e2e installs it, as root")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout that shifts, one of a single gear, and names that would break a careless page."""
    rush = [Arrival(number * (0.02 if number % 40 < 20 else 1.5), 60 + number, 50) for number in range(80)]
    arrivals = sorted(rush, key=lambda arrival: arrival.seconds)

    def played(layout: str, policy: Policy) -> Outcome:
        options = EngineOptions(OPTIONS.max_num_seqs, OPTIONS.max_batched_tokens, OPTIONS.max_model_len, policy=policy)
        return replay(layout, LinearExecutor(), options, 1, arrivals)

    outcomes = [
        played("</script><b>tp</b>", Policy(gear=TP2.name)),
        played("sp", Policy(gear=SP2.name)),
        played("shift", Policy(threshold_tokens=100)),
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, Report("a trace & <more>", {"seed": 0}, outcomes, {"dp": "no room"}))
    return path


@pytest.mark.timeout(960)  # the first of these may install the browser, twice 300 s at most
@pytest.mark.parametrize(("width", "flags"), [(1200, ()), (400, ()), (1200, ("--force-dark-mode",))])
def test_the_report_draws_every_line_of_every_plot(
    browser: str, page: Path, tmp_path: Path, width: int, flags: tuple[str, ...]
) -> None:
    seen = chromium.load(browser, page, tmp_path, *flags, fragment="#check", width=width)
    assert seen.console == ()
    found = re.search(r'<output id="drawn">(.*?)</output>', seen.document, re.DOTALL)
    assert found is not None, "the page did not get to its end"
    drawn = json.loads(unescape(found[1]))
    assert drawn["errors"] == []
    charts = 2 + 2 + 2 + 2 + 1 + 3  # CDFs, TTFT over time, throughput, queue and cache, demand, gears of each layout
    assert len(drawn["plots"]) == charts
    assert seen.document.count("<canvas") == charts
    lines = [line for plot in drawn["plots"] for line in plot]
    assert len(lines) == 8 * 3 + 1 + 1 + 1 + 2
    assert not [line for line in lines if line["pixels"] < LEAST_PIXELS]
    assert seen.document.count('class="plot idle"') == charts, "a legend without a pointer has no values to show"


@pytest.mark.timeout(360)
def test_the_hook_of_that_test_counts_what_is_drawn(browser: str, page: Path, tmp_path: Path) -> None:
    """With lines as pale as the page nothing is counted: so the count is of the lines, not of axes and grid."""
    blank = tmp_path / "blank.html"
    text = page.read_text(encoding="utf-8")
    assert "width: chart.stacked ? 1 : 2" in text
    blank.write_text(text.replace("width: chart.stacked ? 1 : 2", "show: false, width: 2"), encoding="utf-8")
    seen = chromium.load(browser, blank, tmp_path / "profile", fragment="#check")
    found = re.search(r'<output id="drawn">(.*?)</output>', seen.document, re.DOTALL)
    assert found is not None
    lines = [line for plot in json.loads(unescape(found[1]))["plots"] for line in plot]
    assert max(line["pixels"] for line in lines) < LEAST_PIXELS


@pytest.mark.timeout(360)
def test_a_page_that_would_fetch_something_is_noticed(browser: str, page: Path, tmp_path: Path) -> None:
    """What the console says is then proof that the report itself fetches nothing."""
    leaking = tmp_path / "leaking.html"
    text = page.read_text(encoding="utf-8").replace("<main>", '<main><img src="https://example.org/x.png">')
    leaking.write_text(text, encoding="utf-8")
    seen = chromium.load(browser, leaking, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in seen.console)
