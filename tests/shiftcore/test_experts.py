"""Ownership of experts and the dispatch of rows, by brute force over every gear of every pod size."""

import pytest
from shiftcore.experts import Dispatch, ExpertLayout
from shiftcore.layout import Gear, LayoutError

POD_SIZES = (1, 2, 3, 4, 6, 8)


def gears_of(ranks: int) -> list[Gear]:
    return [Gear(s, ranks // s) for s in range(1, ranks + 1) if ranks % s == 0]


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_every_expert_has_one_owner_and_shares_are_as_even_as_can_be(ranks: int) -> None:
    for experts in range(1, 40):
        layout = ExpertLayout(experts, ranks)
        shares = [layout.owned(rank) for rank in range(ranks)]
        assert [expert for share in shares for expert in share] == list(range(experts))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert all(expert in layout.owned(owner) for expert, owner in enumerate(layout.owners()))


def test_uneven_and_empty_shares() -> None:
    assert [list(ExpertLayout(8, 3).owned(rank)) for rank in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [len(ExpertLayout(2, 4).owned(rank)) for rank in range(4)] == [1, 1, 0, 0]


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_every_row_is_sent_once_by_a_rank_that_holds_it(ranks: int) -> None:
    for gear in gears_of(ranks):
        for num_tokens in range(1, 3 * ranks + 2):
            per_shard = gear.padded(num_tokens) // gear.sequence
            sent: list[int] = []
            for rank in range(ranks):
                held = range(gear.sequence_index(rank) * per_shard, (gear.sequence_index(rank) + 1) * per_shard)
                sent += [held[row] for row in Dispatch.of(gear, rank, num_tokens).rows]
            assert sorted(sent) == list(range(num_tokens)), f"{gear}, {num_tokens} tokens"


@pytest.mark.parametrize("ranks", POD_SIZES)
def test_the_parts_of_a_tensor_group_stack_to_its_rows(ranks: int) -> None:
    """A member's rows begin where its part begins in a gather of equal parts, so that stacking restores their order."""
    for gear in gears_of(ranks):
        for num_tokens in range(1, 3 * ranks + 2):
            for rank in range(ranks):
                for t, member in enumerate(gear.tensor_group(rank)):
                    part = Dispatch.of(gear, member, num_tokens)
                    assert len(part.rows) <= part.width
                    assert not part.rows or part.rows.start == t * part.width
                    assert part.width == Dispatch.of(gear, rank, num_tokens).width


def test_no_experts_are_refused() -> None:
    with pytest.raises(LayoutError, match="got 0 experts, 2 ranks"):
        ExpertLayout(0, 2)
