"""The published figures: four fit, the others are predicted."""

from __future__ import annotations

import pytest
from shiftsim import hardware, paper
from shiftsim.executor.fitted import Fitted, published_fit

ASSUMED = (hardware.software(), published_fit())


def test_the_committed_numbers_are_those_that_the_fit_gives() -> None:
    assert list(vars(paper.refit(hardware.software())).values()) == pytest.approx(
        list(vars(published_fit()).values()), rel=1e-4
    )


@pytest.mark.parametrize("cell", [cell for cell in paper.CELLS if cell.metric in paper.LATENCIES], ids=lambda c: c.name)
def test_latencies_are_as_published_within_the_goal(cell: paper.Cell) -> None:
    layout = paper.LAYOUTS[cell.layout]
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
