"""The choice of a gear: who wins over whom, the edges, and the threshold that explains it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftcore.costs import NO_CROSSOVER, CostCurve, CostPoint
from shiftcore.gears import DEFAULT_THRESHOLD_TOKENS, GearTable, ThresholdSource, budget_note, choose, threshold_in_use
from shiftcore.layout import Gear
from shiftcore.policy import MAX_THRESHOLD_TOKENS, Mode, Policy

TP2, SP2 = Gear(1, 2), Gear(2, 1)
TP4, SP2TP2, SP4 = Gear(1, 4), Gear(2, 2), Gear(4, 1)
SIZES = (1, 16, 256, 4096)


def curve(milliseconds: tuple[float, ...], spread: float = 0.01) -> CostCurve:
    points = zip(SIZES, milliseconds, strict=True)
    return CostCurve(tuple(CostPoint(n, ms / 1e3, spread / 1e3, 5) for n, ms in points))


UNMEASURED = GearTable(SP2, {})
CROSSING = GearTable(SP2, {TP2: curve((1, 2, 20, 300)), SP2: curve((2, 3, 10, 150))})
NOISY = GearTable(SP2, {TP2: curve((1, 2, 20, 300), 900), SP2: curve((2, 3, 10, 150), 900)})
ONE_SIDED = GearTable(SP2, {TP2: curve((1, 2, 20, 300)), SP2: curve((2, 3, 30, 400))})
ONE_SIDED_PERHAPS = GearTable(SP2, {TP2: curve((1, 2, 20, 300), 900), SP2: curve((2, 3, 30, 400), 900)})
THREE = GearTable(
    SP4, {TP4: curve((1, 4, 30, 400)), SP2TP2: curve((2, 3, 20, 300)), SP4: curve((3, 5, 25, 200))}
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "policy", "table", "below", "edge", "above"),
    [
        # Tokens at which a gear must be chosen: (n, gear) below, at and above the edge.
        ("gear > mode", Policy(Mode.LATENCY, gear="sp2"), CROSSING, (1, SP2), (256, SP2), (4096, SP2)),
        ("gear > threshold", Policy(Mode.AUTO, 8, "tp2"), CROSSING, (1, TP2), (9, TP2), (4096, TP2)),
        ("latency > threshold", Policy(Mode.LATENCY, 8), CROSSING, (1, TP2), (9, TP2), (4096, TP2)),
        ("throughput > threshold", Policy(Mode.THROUGHPUT, 8), CROSSING, (1, SP2), (8, SP2), (4096, SP2)),
        ("threshold > table", Policy(threshold_tokens=1000), CROSSING, (256, TP2), (1000, TP2), (1001, SP2)),
        ("threshold of one", Policy(threshold_tokens=1), CROSSING, (1, TP2), (2, SP2), (16, SP2)),
        ("table > default", Policy(), CROSSING, (16, TP2), (256, SP2), (4096, SP2)),
        ("default, unmeasured", Policy(), UNMEASURED, (1, TP2), (256, TP2), (257, SP2)),
        ("default, noisy", Policy(), NOISY, (1, TP2), (256, TP2), (257, SP2)),
        ("table > default, tp cheaper throughout", Policy(), ONE_SIDED, (1, TP2), (2048, TP2), (9999, TP2)),
        ("default, tp perhaps cheaper", Policy(), ONE_SIDED_PERHAPS, (1, TP2), (256, TP2), (257, SP2)),
        ("threshold > tp cheaper", Policy(threshold_tokens=8), ONE_SIDED, (1, TP2), (8, TP2), (9, SP2)),
        ("at most > tp cheaper", Policy(max_threshold_tokens=999), ONE_SIDED, (1, TP2), (999, TP2), (1000, SP2)),
        ("middle gear pinned", Policy(gear="sp2tp2"), THREE, (1, SP2TP2), (16, SP2TP2), (4096, SP2TP2)),
        ("three gears", Policy(), THREE, (1, TP4), (256, SP2TP2), (4096, SP4)),
        ("threshold of three", Policy(threshold_tokens=16), THREE, (1, TP4), (16, TP4), (17, SP4)),
        ("one gear", Policy(), GearTable(TP2, {}), (1, TP2), (256, TP2), (4096, TP2)),
        ("at least", Policy(min_threshold_tokens=300), CROSSING, (256, TP2), (300, TP2), (301, SP2)),
        ("at most", Policy(max_threshold_tokens=20), CROSSING, (16, TP2), (20, TP2), (21, SP2)),
        ("at most, three", Policy(max_threshold_tokens=9), THREE, (9, TP4), (10, SP4), (16, SP2TP2)),
        ("at least, default", Policy(min_threshold_tokens=999), NOISY, (1, TP2), (999, TP2), (1000, SP2)),
        ("at most, default", Policy(max_threshold_tokens=9), UNMEASURED, (1, TP2), (9, TP2), (10, SP2)),
    ],
)
def test_choice(
    case: str,
    policy: Policy,
    table: GearTable,
    below: tuple[int, Gear],
    edge: tuple[int, Gear],
    above: tuple[int, Gear],
) -> None:
    for tokens, gear in (below, edge, above):
        assert choose(tokens, table, policy) == gear, f"{case}: {tokens} tokens"


def test_the_default_is_the_contracts() -> None:
    from shiftprotos import contract

    assert DEFAULT_THRESHOLD_TOKENS == contract.DEFAULT_THRESHOLD_TOKENS


@given(st.integers(1, 10_000))
def test_with_a_clear_table_the_choice_is_the_cheapest_gear_that_leads_beyond_doubt(tokens: int) -> None:
    chosen = choose(tokens, THREE, Policy())
    worthy = [THREE.latency, *(gear for gear, first in THREE.worth_from.items() if tokens >= first)]
    assert chosen in worthy
    assert THREE.costs[chosen].seconds(tokens) == min(THREE.costs[gear].seconds(tokens) for gear in worthy)


def test_a_lead_inside_the_noise_does_not_pull_a_small_step_into_the_base_gear() -> None:
    """Found in review: once any crossover existed, single decodes ran in sp2 for 0.1 ms out of 2 ms of noise."""
    noisy_small = {TP2: (10.0, 12, 20, 100), SP2: (9.9, 13, 21, 60)}
    curves = {
        gear: CostCurve(tuple(CostPoint(n, ms / 1e3, 0.002, 5) for n, ms in zip((1, 8, 64, 512), values, strict=True)))
        for gear, values in noisy_small.items()
    }
    table = GearTable(SP2, curves)
    assert table.crossover.tokens == 512
    assert [choose(n, table, Policy()) for n in (1, 100, 300, 511, 512)] == [TP2, TP2, TP2, TP2, SP2]
    assert threshold_in_use(table, Policy()) == (511, ThresholdSource.CALIBRATION)


def test_a_base_gear_that_is_dearer_at_every_size_is_never_chosen() -> None:
    """Found in review: choose(2048) was sp4, dearer in every measurement, because the default threshold held."""
    table = GearTable(
        SP4, {gear: curve((1 + s, 2 + s, 20 + s, 300 + 10 * s)) for s, gear in enumerate((TP4, SP2TP2, SP4))}
    )
    assert table.crossover.reason == NO_CROSSOVER
    assert {choose(n, table, Policy()) for n in (*range(1, 5000, 7), 2048)} == {TP4}


def test_a_middle_gear_inside_the_noise_does_not_bring_back_a_base_gear_that_is_surely_dearer() -> None:
    costs = {TP4: curve((1, 2, 20, 300)), SP2TP2: curve((2, 3, 19, 299), 900), SP4: curve((2, 3, 30, 400))}
    assert {choose(n, GearTable(SP4, costs), Policy()) for n in (1, 257, 4096)} == {TP4}


def test_a_tie_goes_to_the_gear_of_lower_latency() -> None:
    table = GearTable(SP2, {TP2: curve((1, 2, 3, 9)), SP2: curve((1, 2, 3, 8))})
    assert table.crossover.tokens == 4096
    assert choose(16, table, Policy()) == TP2


@pytest.mark.parametrize(
    ("policy", "table", "expected"),
    [
        (Policy(gear="sp2"), CROSSING, (None, ThresholdSource.PINNED)),
        (Policy(Mode.LATENCY, 8), CROSSING, (None, ThresholdSource.PINNED)),
        (Policy(Mode.THROUGHPUT), CROSSING, (None, ThresholdSource.PINNED)),
        (Policy(threshold_tokens=8), CROSSING, (8, ThresholdSource.POLICY)),
        (Policy(), CROSSING, (255, ThresholdSource.CALIBRATION)),
        (Policy(), ONE_SIDED, (MAX_THRESHOLD_TOKENS, ThresholdSource.CALIBRATION)),
        (Policy(max_threshold_tokens=999), ONE_SIDED, (999, ThresholdSource.CALIBRATION)),
        (Policy(), ONE_SIDED_PERHAPS, (DEFAULT_THRESHOLD_TOKENS, ThresholdSource.DEFAULT)),
        (Policy(), NOISY, (DEFAULT_THRESHOLD_TOKENS, ThresholdSource.DEFAULT)),
        (Policy(), UNMEASURED, (DEFAULT_THRESHOLD_TOKENS, ThresholdSource.DEFAULT)),
    ],
)
def test_threshold_in_use(policy: Policy, table: GearTable, expected: tuple[int | None, ThresholdSource]) -> None:
    assert threshold_in_use(table, policy) == expected


COSTS = st.lists(st.floats(0.001, 1), min_size=4, max_size=4)


BOUNDS = st.tuples(st.none() | st.integers(1, 5000), st.none() | st.integers(1, 5000)).filter(
    lambda pair: pair[0] is None or pair[1] is None or pair[0] <= pair[1]
)


@given(COSTS, COSTS, st.none() | st.integers(1, 5000), BOUNDS, st.integers(1, 6000))
def test_the_threshold_explains_the_choice(
    tp: list[float], sp: list[float], threshold: int | None, bounds: tuple[int | None, int | None], tokens: int
) -> None:
    table = GearTable(SP2, {TP2: curve(tuple(tp)), SP2: curve(tuple(sp))})
    policy = Policy(threshold_tokens=threshold) if threshold else Policy(Mode.AUTO, None, None, 0, *bounds)
    limit, _ = threshold_in_use(table, policy)
    assert limit is not None
    assert choose(tokens, table, policy) == (TP2 if tokens <= limit else SP2)
    low, high = policy.bounds
    assert low <= limit <= high


@pytest.mark.parametrize(("max_batched_tokens", "says"), [(511, True), (512, False), (4096, False)])
def test_a_budget_below_two_crossovers_is_said(max_batched_tokens: int, says: bool) -> None:
    note = budget_note(CROSSING, max_batched_tokens)
    assert bool(note) == says
    if says:
        assert all(part in note for part in ("at most 511 tokens", "crossover of 256", "to 512 or more"))


@pytest.mark.parametrize("table", [UNMEASURED, NOISY, ONE_SIDED])
def test_without_a_crossover_no_budget_is_too_small(table: GearTable) -> None:
    assert budget_note(table, 1) == ""
