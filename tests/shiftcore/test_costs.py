"""Cost curves and where two of them cross: clear, inside the noise, nowhere, or not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftcore.costs import CALIBRATION_NOISY, NO_CROSSOVER, NOT_CALIBRATED, SINGLE_GEAR, CostCurve, CostPoint
from shiftcore.costs import find_crossover as find
from shiftcore.layout import Gear

TP, SP = Gear(1, 2), Gear(2, 1)
SIZES = (1, 8, 64, 512)


def curve(milliseconds: tuple[float, ...], spread: float = 0.0, sizes: tuple[int, ...] = SIZES) -> CostCurve:
    points = zip(sizes, milliseconds, strict=True)
    return CostCurve(tuple(CostPoint(n, ms / 1e3, spread / 1e3, 4) for n, ms in points))


def curves() -> st.SearchStrategy[CostCurve]:
    values = st.lists(st.floats(1e-6, 10), min_size=1, max_size=6)
    return values.map(lambda ys: CostCurve(tuple(CostPoint(4**i, y, 0.0, 3) for i, y in enumerate(ys))))


@given(curves(), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_larger_step_is_never_cheaper(costs: CostCurve, a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert 0 < costs.seconds(low) <= costs.seconds(high) * (1 + 1e-9)


@given(curves())
def test_a_measured_size_costs_at_least_its_median(costs: CostCurve) -> None:
    for point in costs.points:
        assert costs.seconds(point.tokens) >= point.median_seconds * (1 - 1e-9)


@pytest.mark.parametrize(
    ("tokens", "milliseconds"), [(0, 1), (1, 1), (8, 8), (36, 12), (64, 16), (512, 128), (1024, 256), (576, 144)]
)
def test_between_and_beyond_the_points(tokens: int, milliseconds: float) -> None:
    assert curve((1, 8, 16, 128)).seconds(tokens) == pytest.approx(milliseconds / 1e3)


def test_one_point_is_flat() -> None:
    assert {curve((3,), sizes=(8,)).seconds(n) for n in (0, 1, 8, 900)} == {0.003}


def test_capacity_is_that_of_the_largest_step() -> None:
    assert curve((1, 2, 4, 8)).capacity_tokens_per_second() == pytest.approx(64_000)


def test_point_of_samples() -> None:
    point = CostPoint.of(8, [float(i) for i in range(11)])
    assert (point.tokens, point.median_seconds, point.spread_seconds, point.samples) == (8, 5.0, 4.0, 11)
    assert CostPoint.of(8, [2.0]) == CostPoint(8, 2.0, 0.0, 1)
    with pytest.raises(ValueError, match="no measurement for 8 tokens"):
        CostPoint.of(8, [])


@pytest.mark.parametrize("sizes", [(), (8, 1), (8, 8)])
def test_points_need_increasing_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="increasing token counts"):
        curve((1.0,) * len(sizes), sizes=sizes)


@pytest.mark.parametrize(
    ("case", "tp", "sp", "spread", "tokens", "reason", "sentence"),
    [
        ("clear", (1, 2, 9, 60), (2, 3, 6, 40), 0.1, 64, "", "sp2 is 3.00 ms cheaper than tp2 from 64 tokens on"),
        ("everywhere", (2, 3, 9, 60), (1, 2, 6, 40), 0.1, 1, "", "from 1 tokens on"),
        ("only at the end", (1, 2, 4, 60), (2, 3, 6, 40), 0.1, 512, "", "from 512 tokens on"),
        ("a lead, a loss, a lead", (3, 3, 9, 60), (1, 4, 6, 40), 0.1, 64, "", "from 64 tokens on"),
        ("never", (1, 2, 4, 8), (2, 3, 6, 9), 0.1, None, NO_CROSSOVER, "as cheap as sp2 up to 512 tokens"),
        ("equal", (1, 2, 4, 8), (1, 2, 4, 8), 0.0, None, NO_CROSSOVER, "as cheap as sp2 up to 512 tokens"),
        ("noisy", (1, 2, 4, 9), (2, 3, 6, 8), 5.0, None, CALIBRATION_NOISY, "by 1.00 ms at 512 tokens with a noise of"),
        ("never, perhaps", (1, 2, 4, 8), (2, 3, 6, 9), 5.0, None, CALIBRATION_NOISY, "tp2 leads sp2 by 1.00 ms at 512"),
        ("lost again", (1, 2, 9, 40), (2, 3, 6, 60), 0.1, None, CALIBRATION_NOISY, "by 3.00 ms at 64 tokens"),
    ],
)
def test_crossover(
    case: str,
    tp: tuple[float, ...],
    sp: tuple[float, ...],
    spread: float,
    tokens: int | None,
    reason: str,
    sentence: str,
) -> None:
    crossover = find({TP: curve(tp, spread), SP: curve(sp, spread)}, TP, SP)
    assert (crossover.tokens, crossover.reason) == (tokens, reason), case
    assert sentence in crossover.message


def test_a_small_noisy_lead_does_not_become_the_crossover() -> None:
    """The first size from which the lead stays may be inside the noise; the crossover is the first clear one."""
    tp = CostCurve((CostPoint(1, 0.0011, 0.001, 4), CostPoint(8, 0.009, 0.001, 4), CostPoint(64, 0.09, 0.001, 4)))
    sp = CostCurve((CostPoint(1, 0.0010, 0.001, 4), CostPoint(8, 0.005, 0.001, 4), CostPoint(64, 0.05, 0.001, 4)))
    assert find({TP: tp, SP: sp}, TP, SP).tokens == 8


def test_an_outlier_of_one_gear_raises_its_whole_curve_for_the_crossover_too() -> None:
    """The curve that gears are chosen by is monotone: sp2 is never the cheaper one there, so there is no crossover."""
    table = {TP: curve((1, 2, 9, 60)), SP: curve((70, 3, 6, 40))}
    crossover = find(table, TP, SP)
    assert (crossover.tokens, crossover.reason) == (None, NO_CROSSOVER)
    assert all(table[TP].seconds(n) < table[SP].seconds(n) for n in SIZES)


def test_what_cannot_be_compared() -> None:
    assert find({TP: curve((1, 2, 3, 4))}, TP, TP).reason == SINGLE_GEAR
    for table in ({}, {TP: curve((1, 2, 3, 4))}, {SP: curve((1, 2, 3, 4))}):
        crossover = find(table, TP, SP)
        assert (crossover.tokens, crossover.reason) == (None, NOT_CALIBRATED)
        assert "tp2 and sp2 have not been measured" in crossover.message


@given(curves(), curves(), st.floats(0, 1))
def test_a_lead_is_never_claimed_where_there_is_none(tp: CostCurve, sp: CostCurve, spread: float) -> None:
    noisy = CostCurve(tuple(CostPoint(p.tokens, p.median_seconds, spread, 3) for p in tp.points))
    crossover = find({TP: noisy, SP: sp}, TP, SP)
    assert "-" not in crossover.message
    shared = {p.tokens for p in tp.points} & {p.tokens for p in sp.points}
    if crossover.tokens is not None:
        assert all(sp.seconds(n) < tp.seconds(n) for n in shared if n >= crossover.tokens)
    elif crossover.reason == NO_CROSSOVER:
        assert all(sp.seconds(n) >= tp.seconds(n) for n in shared)
