"""The published figures: four fit, the others are predicted."""

from __future__ import annotations

import json

import pytest
from shiftsim import cli, hardware, paper
from shiftsim.executor.fitted import Fitted, published_fit

ASSUMED = (hardware.software(), published_fit())


def test_the_committed_numbers_are_those_that_the_fit_gives() -> None:
    assert list(vars(paper.refit(hardware.software())).values()) == pytest.approx(
        list(vars(published_fit()).values()), rel=1e-4
    )


@pytest.mark.parametrize("cell", [cell for cell in paper.CELLS if cell.metric in paper.LATENCIES], ids=lambda c: c.name)
def test_latencies_are_as_published_within_the_goal(cell: paper.Cell) -> None:
    layout = paper.layout_of(cell)
    found = paper.LATENCIES[cell.metric](layout, paper.executor(layout, ASSUMED))
    assert found == pytest.approx(cell.published, rel=0.0005 if cell.fits else cell.goal)


def test_at_most_four_numbers_are_fitted_each_on_its_own_cell() -> None:
    fits = [cell.fits for cell in paper.CELLS if cell.fits]
    assert sorted(fits) == sorted(vars(published_fit()))
    assert len(fits) == 4


def test_assumptions_move_one_at_a_time_and_stay_possible() -> None:
    moved = paper.variations(hardware.software())
    assert len(moved) == 2 * (6 + 4 + 1)
    for name, (software, fitted) in moved.items():
        changed = [key for key, value in vars(software).items() if value != vars(ASSUMED[0])[key]]
        assert changed == ([] if name.split()[0] in vars(fitted) else [name.split()[0]]), name
        assert all(value <= 1 for key, value in {**vars(software), **vars(fitted)}.items() if "_of_" in key), name
    software, fitted = moved["memory_of_peak -20 %"]
    assert fitted.host_seconds < ASSUMED[1].host_seconds, "the fit makes up for slower memory"
    assert isinstance(fitted, Fitted)


@pytest.mark.parametrize("cell", [cell for cell in paper.CELLS if cell.metric == "throughput"], ids=lambda c: c.name)
def test_throughput_is_near_the_published_also_with_few_requests(cell: paper.Cell) -> None:
    """600 instead of 4,000: the last of them run alone, which costs some per cent."""
    layout = paper.layout_of(cell)
    found = paper.throughput(layout, paper.executor(layout, ASSUMED), requests=600)
    assert found == pytest.approx(cell.published, rel=cell.goal + 0.10)


def test_the_page_shows_every_figure_and_what_was_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["paper", "--requests", "64", "--no-ranges", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == sorted(cell.name for cell in paper.CELLS)
    assert [name for name, cell in found.items() if cell["fitted"]] == ["sp TPOT", "sp TTFT", "tp TPOT", "tp TTFT"]
    cli.run(["paper", "--fit"])
    assert capsys.readouterr().out.startswith("linear_of_peak = 0.508962\nhost_seconds = 0.00555037\n")
