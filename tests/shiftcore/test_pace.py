"""The step under a target for time per output token: against a search over every size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable, choose, shift_points
from shiftcore.layout import Gear, allowed_gears
from shiftcore.pace import Mix, pace
from shiftcore.policy import Mode, Policy

SIZES = (1, 16, 64, 256)
BASE = Gear(4, 1)
TP = Gear(1, 4)


def table_of(costs: dict[Gear, tuple[float, ...]], pair_seconds: float = 0.0) -> GearTable:
    def curve(milliseconds: tuple[float, ...]) -> CostCurve:
        points = zip(SIZES, milliseconds, strict=True)
        return CostCurve(tuple(CostPoint(n, ms / 1e3, 0.0, 3) for n, ms in points), pair_seconds)

    return GearTable(BASE, {gear: curve(values) for gear, values in costs.items()})


STEEP_AND_FLAT = table_of({TP: (1, 4, 20, 90), Gear(2, 2): (3, 5, 12, 45), BASE: (6, 7, 10, 20)})


@st.composite
def tables(draw: st.DrawFn) -> GearTable:
    curve = st.lists(st.floats(0.1, 100), min_size=4, max_size=4).map(tuple)
    return table_of({gear: draw(curve) for gear in allowed_gears(BASE)}, draw(st.sampled_from([0.0, 1e-6, 1e-4])))


policies = st.one_of(
    st.builds(Policy, mode=st.sampled_from(list(Mode)), threshold_tokens=st.none() | st.integers(1, 300)),
    st.builds(Policy, min_threshold_tokens=st.integers(1, 100), max_threshold_tokens=st.integers(100, 300)),
    st.builds(Policy, gear=st.sampled_from(["tp4", "sp2tp2", "sp4"])),
)
mixes = st.builds(Mix, st.integers(0, 40), st.integers(0, 5_000), st.integers(0, 200))


@given(tables(), policies, mixes, st.floats(0.1, 120), st.integers(1, 300), st.integers(1, 32))
def test_no_size_that_holds_the_target_is_larger(
    table: GearTable, policy: Policy, mix: Mix, milliseconds: float, max_tokens: int, min_prefill: int
) -> None:
    target = milliseconds / 1e3
    smallest = min(max_tokens, mix.decodes + min_prefill)
    sizes = range(smallest, max_tokens + 1)
    holding = [n for n in sizes if table.costs[choose(n, table, policy)].seconds(n, mix.pairs(n)) <= target]
    found = pace(mix, table, policy, target_seconds=target, max_tokens=max_tokens, min_prefill=min_prefill)
    assert found is not None
    assert (found.tokens, found.holds) == ((max(holding), True) if holding else (smallest, False))
    assert found.gear == choose(found.tokens, table, policy)


@given(tables(), policies, mixes)
def test_the_cost_falls_at_shift_points_only(table: GearTable, policy: Policy, mix: Mix) -> None:
    def seconds(n: int) -> float:
        return table.costs[choose(n, table, policy)].seconds(n, mix.pairs(n))

    points = shift_points(table, policy)
    for n in range(1, 300):
        assert seconds(n + 1) >= seconds(n) * (1 - 1e-9) or n in points


@pytest.mark.parametrize(("target_ms", "tokens", "gear"), [(5.0, 19, TP), (20.0, 256, BASE), (0.5, 12, TP)])
def test_a_looser_target_buys_a_larger_chunk_in_another_gear(target_ms: float, tokens: int, gear: Gear) -> None:
    mix = Mix(decodes=8, decode_context=400, prefill_context=0)
    found = pace(mix, STEEP_AND_FLAT, Policy(), target_seconds=target_ms / 1e3, max_tokens=256, min_prefill=4)
    assert found is not None
    assert (found.tokens, found.gear, found.holds) == (tokens, gear, target_ms != 0.5)


def test_a_long_context_takes_its_share_of_the_target() -> None:
    table = table_of({TP: (1, 4, 20, 90), Gear(2, 2): (1, 4, 20, 90), BASE: (1, 4, 20, 90)}, pair_seconds=1e-6)
    short = pace(Mix(4, 0, 0), table, Policy(), target_seconds=0.02, max_tokens=256, min_prefill=1)
    long = pace(Mix(4, 16_000, 0), table, Policy(), target_seconds=0.02, max_tokens=256, min_prefill=1)
    assert short is not None
    assert long is not None
    assert (short.tokens, long.tokens) == (64, 16)


def test_nothing_is_said_before_the_gears_are_measured() -> None:
    assert pace(Mix(1, 0, 0), GearTable(BASE, {}), Policy(), target_seconds=1, max_tokens=8, min_prefill=1) is None
