"""Ownership of heads, by brute force over every gear of every pod size, and every invalid layout refused."""

from itertools import product

import pytest
from shiftcore.layout import (
    Gear,
    HeadLayout,
    LayoutError,
    allowed_gears,
    base_gear,
    padded_vocabulary,
    shard,
    tp_gear,
)

POD_SIZES = (1, 2, 3, 4, 6, 8)
HEADS = range(1, 17)


def gears_of(ranks: int) -> list[Gear]:
    return [Gear(s, ranks // s) for s in range(1, ranks + 1) if ranks % s == 0]


def is_valid(hq: int, hkv: int, ranks: int) -> bool:
    """The rule restated without the layout's code: heads can be dealt out one by one, each query head with its kv."""
    if hq % hkv or hq % ranks:
        return False
    owners = [{q * ranks // hq for q in range(hq) if q * hkv // hq == kv} for kv in range(hkv)]
    kv_of_rank = [{q * hkv // hq for q in range(hq) if q * ranks // hq == r} for r in range(ranks)]
    # Every rank needs equally many kv heads, and every kv head equally many ranks.
    return len({len(o) for o in owners}) == 1 and len({len(k) for k in kv_of_rank}) == 1


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_ownership_is_the_same_in_every_gear(ranks: int) -> None:
    checked = 0
    for hq, hkv in product(HEADS, HEADS):
        if not is_valid(hq, hkv, ranks):
            continue
        layout = HeadLayout(hq, hkv, ranks)
        owned = [q for r in range(ranks) for q in layout.query_range(r)]
        assert owned == list(range(hq)), "every query head has exactly one owner, in head order"
        for rank in range(ranks):
            needed = {q * hkv // hq for q in layout.query_range(rank)}
            assert set(layout.kv_range(rank)) == needed, (hq, hkv, rank)
        for gear in gears_of(ranks):
            assert_exchange_delivers(layout, gear)
            checked += 1
    assert checked >= len(gears_of(ranks)), "no valid layout was checked"


def assert_exchange_delivers(layout: HeadLayout, gear: Gear) -> None:
    """Follow each head through the all-to-all: what arrives must be what the rank owns."""
    for rank in range(gear.ranks):
        s = gear.sequence_index(rank)
        for sender in gear.sequence_group(rank):
            projected_q = list(layout.projected_query_range(gear, sender))
            width = len(projected_q) // gear.sequence
            assert projected_q[s * width : (s + 1) * width] == list(layout.query_range(rank))
            projected_kv = list(layout.projected_kv_range(gear, sender))
            assert projected_kv == sorted({q * layout.kv_heads // layout.query_heads for q in projected_q})
            arrived = [projected_kv[i] for i in layout.kv_sent_to(gear, rank)]
            assert arrived == list(layout.kv_range(rank)), (layout, gear, rank)


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_every_invalid_pair_is_refused_with_its_numbers(ranks: int) -> None:
    refused = 0
    for hq, hkv in product(HEADS, HEADS):
        if is_valid(hq, hkv, ranks):
            HeadLayout(hq, hkv, ranks)
            continue
        with pytest.raises(LayoutError) as caught:
            HeadLayout(hq, hkv, ranks)
        assert str(hq) in str(caught.value) or str(hkv) in str(caught.value)
        refused += 1
    assert refused > 0


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_groups_partition_the_ranks(ranks: int) -> None:
    for gear in gears_of(ranks):
        for rank in range(ranks):
            sequence, tensor = gear.sequence_group(rank), gear.tensor_group(rank)
            assert sequence[gear.sequence_index(rank)] == rank
            assert tensor[gear.tensor_index(rank)] == rank
            assert (len(sequence), len(tensor)) == (gear.sequence, gear.tensor)
            assert set(sequence) & set(tensor) == {rank}
            assert all(gear.sequence_group(other) == sequence for other in sequence)
            assert all(gear.tensor_group(other) == tensor for other in tensor)


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_a_gears_weight_shard_lies_inside_the_base_shard(ranks: int) -> None:
    for base in gears_of(ranks):
        for gear in allowed_gears(base):
            for rank in range(ranks):
                outer = shard(ranks * 12, base.tensor, base.tensor_index(rank), "FFN size")
                inner = shard(ranks * 12, gear.tensor, gear.tensor_index(rank), "FFN size")
                assert inner.start in outer
                assert inner[-1] in outer


def test_allowed_gears_run_from_tp_to_base() -> None:
    assert [g.name for g in allowed_gears(Gear(4, 1))] == ["tp4", "sp2tp2", "sp4"]
    assert [g.name for g in allowed_gears(Gear(2, 4))] == ["tp8", "sp2tp4"]
    assert allowed_gears(tp_gear(8)) == (tp_gear(8),)
    assert allowed_gears(Gear(6, 1)) == (Gear(1, 6), Gear(2, 3), Gear(3, 2), Gear(6, 1))


@pytest.mark.parametrize(
    ("degrees", "name"), [((), "sp8"), ((8,), "sp8"), ((2, None), "sp2tp4"), ((None, 2), "sp4tp2"), ((1, 8), "tp8")]
)
def test_a_base_gear_is_completed_from_what_is_set(degrees: tuple[int | None, ...], name: str) -> None:
    assert base_gear(8, *degrees).name == name


@pytest.mark.parametrize("degrees", [(3, None), (None, 3), (4, 4), (0, None), (None, 0), (-1, -8), (16, None)])
def test_degrees_whose_product_is_not_the_gpus_are_refused(degrees: tuple[int | None, int | None]) -> None:
    with pytest.raises(LayoutError, match=r"gpus is 8|must be positive"):
        base_gear(8, *degrees)


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_names_parse_back(ranks: int) -> None:
    for gear in gears_of(ranks):
        assert Gear.parse(gear.name) == gear


@pytest.mark.parametrize("name", ["", "tp", "sp0", "tp02", "tp2sp2", "SP2", "sp2tp2x", "sp-2", "4"])
def test_a_wrong_gear_name_is_refused_and_named(name: str) -> None:
    with pytest.raises(LayoutError, match="write tpN"):
        Gear.parse(name)


def test_padding_and_sharding() -> None:
    assert [Gear(4, 2).padded(n) for n in (1, 4, 5)] == [4, 4, 8]
    assert padded_vocabulary(262_145, 8) == 262_152
    with pytest.raises(LayoutError, match="FFN size 10 does not divide over 4 ranks"):
        shard(10, 4, 0, "FFN size")


@pytest.mark.parametrize("degrees", [(0, 1), (1, 0), (-1, 2)])
def test_degrees_must_be_positive(degrees: tuple[int, int]) -> None:
    with pytest.raises(LayoutError, match="must be positive"):
        Gear(*degrees)
