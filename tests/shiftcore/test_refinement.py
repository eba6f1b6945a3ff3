"""Which size a calibration measures next, on tables whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import given
from hypothesis import strategies as st
from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftcore.refinement import RESOLUTION, next_size

TP, SP = Gear(1, 2), Gear(2, 1)
Truth = Mapping[Gear, Callable[[int], float]]  # seconds by size


def measured(truth: Truth, sizes: set[int], spread: float = 0.0) -> GearTable:
    def curve(cost: Callable[[int], float]) -> CostCurve:
        return CostCurve(tuple(CostPoint(n, cost(n), spread, 4) for n in sorted(sizes)))

    return GearTable(max(truth), {gear: curve(cost) for gear, cost in truth.items()})


def crossing_at(tokens: int) -> Truth:
    """TP has a lower step, SP a lower slope; SP is cheaper for all sizes above this one."""
    return {TP: lambda n: 1e-3 + n * 2e-6, SP: lambda n: 1e-3 + (tokens + 0.5) * 1e-6 + n * 1e-6}


def refined(truth: Truth, sizes: set[int]) -> tuple[GearTable, list[int]]:
    added: list[int] = []
    while (size := next_size(measured(truth, sizes))) is not None:
        added.append(size)
        sizes = sizes | {size}
        assert len(added) < 50, f"does not end: {added}"
    return measured(truth, sizes), added


LADDER = {1 << i for i in range(14)}


def test_a_bracket_is_halved_until_it_is_narrow() -> None:
    table, added = refined(crossing_at(568), LADDER)
    assert added == [768, 640, 576, 544]
    assert table.crossover.tokens == 576


@given(tokens=st.integers(1, 8000), largest=st.integers(1, 8192))
def test_the_crossover_is_the_true_one_within_the_resolution(tokens: int, largest: int) -> None:
    sizes = {n for n in LADDER if n <= largest} | {largest}
    truth = crossing_at(tokens)
    table, added = refined(truth, sizes)
    assert len(added) <= 4, "a factor of two is halved four times"
    assert not sizes & set(added)
    if largest <= tokens:
        assert (table.crossover.tokens, added) == (None, [])
        return
    first = tokens + 1  # the first size at which SP is cheaper
    found = table.crossover.tokens
    assert found is not None
    assert first <= found <= max(first + 1, first * (1 + RESOLUTION) + 1)


def test_only_the_bracket_of_the_base_gear_is_halved() -> None:
    """A mixed gear is measured along, and its own crossover stays on the ladder: sizes measured elsewhere could show a
    dent in a curve, and one dent moves the size from which a gear *stays* cheaper behind it."""
    base, middle, tp = Gear(4, 1), Gear(2, 2), Gear(1, 4)
    truth = {
        tp: lambda n: 1e-3 + n * 4e-6,
        middle: lambda n: 1e-3 + 40.5 * 2e-6 + n * 2e-6,
        base: lambda n: 1e-3 + 600.5 * 3e-6 + n * 1e-6,
    }
    table, added = refined(truth, LADDER)
    assert table.worth_from == {middle: 64, base: 608}
    assert added == [768, 640, 576, 608]


def test_noise_and_a_gear_that_never_pays_are_no_bracket() -> None:
    """The default threshold stands for not knowing, and tp for being the cheapest: measuring more changes neither."""
    noisy = measured(crossing_at(568), LADDER, spread=1.0)
    assert noisy.crossover.reason == "CalibrationNoisy"
    assert next_size(noisy) is None
    never = measured(crossing_at(1 << 20), LADDER)
    assert never.crossover.reason == "NoCrossover"
    assert next_size(never) is None
    assert next_size(GearTable(SP, {})) is None
    assert next_size(measured({Gear(1, 1): lambda n: 1e-3 * n}, LADDER)) is None


def test_a_crossover_at_the_smallest_size_has_nothing_below_it() -> None:
    assert next_size(measured({TP: lambda n: 2e-3 * n, SP: lambda n: 1e-3 * n}, LADDER)) is None


def test_a_size_inside_the_noise_lies_below_the_crossover() -> None:
    """Noise at 768 tokens: the crossover stays where it is beyond doubt."""
    sizes = LADDER | {768}
    first = measured(crossing_at(568), LADDER)
    assert first.crossover.tokens == 1024
    truth = crossing_at(568)
    points = {
        gear: CostCurve(tuple(CostPoint(n, cost(n), 1.0 if n == 768 else 0.0, 4) for n in sorted(sizes)))
        for gear, cost in truth.items()
    }
    table = GearTable(SP, points)
    assert table.crossover.tokens == 1024
    assert next_size(table) == 896


def test_sizes_that_a_short_budget_left_out_come_first() -> None:
    """Of 1 and 8,192 tokens the middle is 64 and not 4,096."""
    table, added = refined(crossing_at(568), {1, 8192})
    assert added[:4] == [64, 1024, 256, 512]
    assert table.crossover.tokens == 576
