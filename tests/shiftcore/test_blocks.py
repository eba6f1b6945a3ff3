"""The block pool: every block is free or used, once, and the lowest free ones go first."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shiftcore.blocks import BlockPool


@example(2, [(True, 1), (True, 1), (False, 0), (False, 0), (True, 1)])
@given(st.integers(1, 20), st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=40))
def test_pool_agrees_with_a_set(num_blocks: int, actions: list[tuple[bool, int]]) -> None:
    pool = BlockPool(num_blocks, 4)
    held: list[list[int]] = []
    free = set(range(num_blocks))
    for allocates, number in actions:
        if allocates and number <= pool.num_free:
            taken = pool.allocate(number)
            assert taken == sorted(free)[:number], "the lowest free numbers, in order"
            free -= set(taken)
            held.append(taken)
        elif held:
            returned = held.pop(number % len(held))
            pool.release(returned)
            free |= set(returned)
        pool.check()
        assert pool.num_free == len(free)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert BlockPool(1, 4).blocks_for(tokens) == blocks


def test_a_block_is_released_once() -> None:
    pool = BlockPool(3, 4)
    taken = pool.allocate(2)
    pool.release(taken)
    with pytest.raises(AssertionError, match="block 0 is released but not in use"):
        pool.release(taken)
    with pytest.raises(AssertionError, match="5 blocks asked, 3 free"):
        pool.allocate(5)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_pool_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_blocks} blocks of {block_size}"):
        BlockPool(num_blocks, block_size)
