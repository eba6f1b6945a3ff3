"""The HTML report as a file: whole in itself, the same each time, and safe whatever the names in it are."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import pytest
from helpers.linear_executor import LinearExecutor
from shiftsim import __main__ as command
from shiftsim import report, report_words
from shiftsim.engine import EngineOptions
from shiftsim.replay import Outcome, replay
from shiftsim.report import Report
from shiftsim.trace import Arrival

OPTIONS = EngineOptions(max_num_seqs=8, max_batched_tokens=256, max_model_len=2048)
EVIL = "</script><script>alert(1)</script><!--@@JS@@ & \u2028 'x' \"y\""


def outcome(layout: str, gap: float = 1.0, requests: int = 60) -> Outcome:
    arrivals = [Arrival(number * gap, 256, 50) for number in range(requests)]
    return replay(layout, LinearExecutor(), OPTIONS, 1, arrivals)


def page(*outcomes: Outcome, title: str = "day.csv on 8xH200") -> str:
    return report.html(Report(title, {"trace": {"name": "day.csv", "seed": 3}}, outcomes))


def data(html: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_needs_nothing_from_anywhere() -> None:
    html = page(outcome("tp"))
    assert "default-src 'none'" in html
    own = re.sub(r"/\*.*?\*/", "", html, flags=re.DOTALL)  # comments name where uPlot is from
    for word in ("http:", "https:", "src=", "@import", "url(", "<link", "<iframe", "fetch(", "XMLHttpRequest"):
        assert word not in own, word
    assert "MIT License" in html, "who copies uPlot copies its licence"


def test_the_same_replay_gives_the_same_bytes() -> None:
    assert page(outcome("tp"), outcome("sp")) == page(outcome("tp"), outcome("sp"))


def test_no_name_can_end_the_script_or_become_markup() -> None:
    """A trace and a model have names that a user chooses."""
    html = report.html(Report(EVIL, {"trace": {"name": EVIL}}, [outcome(EVIL)], {EVIL: EVIL}))
    assert "alert(1)</script>" not in html
    assert html.count("</script>") == 3
    assert html.count("<!--") == 0
    assert data(html)[0]["lines"][0]["name"] == EVIL
    assert f"<title>{escape(EVIL)}</title>" in html


def test_its_size_does_not_grow_with_the_trace() -> None:
    short, long = (len(page(outcome("tp", requests=requests))) for requests in (600, 6000))
    assert long < 1.5 * short


def test_it_says_who_keeps_up_and_who_drowns() -> None:
    calm, flooded = outcome("calm"), outcome("flooded", gap=0.001, requests=2000)
    assert report_words.headline([calm]) == "calm keeps up"
    assert report_words.headline([calm, calm]) == "Every layout keeps up"
    assert report_words.headline([flooded]) == "flooded drowns"
    assert report_words.headline([flooded, flooded]) == "No layout keeps up"
    assert report_words.headline([calm, flooded]) == "calm keeps up; flooded drowns"
    words = " ".join(report_words.summary([flooded]))
    assert f"another {report_words.duration(flooded.drain_seconds)} after the last arrival" in words


def test_the_plots_show_what_was_measured() -> None:
    tried = outcome("tp", gap=0.5, requests=200)
    charts = {re.sub(" .*", "", one["y"]["label"]): one for one in data(page(tried))}
    width = charts["tokens"]["at"][1] - charts["tokens"]["at"][0]
    assert charts["tokens"]["x"]["unit"] == "s"
    tokens = sum(value for value in charts["tokens"]["lines"][0]["values"] if value is not None) * width
    assert tokens == pytest.approx(200 * (256 + 49), rel=0.01)
    arrived = sum(charts["arriving"]["lines"][0]["values"]) * width
    assert arrived == pytest.approx(200, rel=0.01)
    shares = charts["requests"]["lines"][0]["values"]
    assert (shares[0], shares[-1]) == (0, 100)
    assert shares == sorted(shares)
    busy = sum(value for line in charts["time"]["lines"] for value in line["values"] if value is not None) / 100 * width
    assert busy == pytest.approx(sum(use.seconds for use in tried.gears.values()), rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.00934, "9.34 ms"), (0.159, "159 ms"), (0.9999, "1 s"), (65.04, "65 s"), (600, "10 min"), (9000, "2.5 h")],
)
def test_a_duration_is_said_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert report_words.duration(seconds) == words


def test_the_command_writes_it_beside_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trace, html = tmp_path / "t.csv", tmp_path / "report.html"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,1\n5,200,2\n10,300,3\n")
    asked = ["shift-sim", "replay", "--trace", str(trace), "--model", "llama-3.1-8b-fp8", "--hardware", "2xH100",
             "--layout", "tp", "--layout", "shift", "--json", "--seed", "7"]  # fmt: skip
    written = []
    for _ in range(2):
        monkeypatch.setattr("sys.argv", [*asked, "--html", str(html)])
        command.main()
        assert len(json.loads(capsys.readouterr().out)["layouts"]) == 2
        written.append(html.read_bytes())
    assert written[0] == written[1]
    text = written[0].decode()
    for said in ("Every layout keeps up", "<dt>Seed</dt><dd>7</dd>", "llama-3.1-8b-fp8", "Modelled, not measured"):
        assert said in text
    monkeypatch.setattr("sys.argv", [*asked, "--html", str(tmp_path / "nowhere" / "report.html")])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == command.EXIT_USAGE
    assert "name a file in a folder that exists" in capsys.readouterr().err
