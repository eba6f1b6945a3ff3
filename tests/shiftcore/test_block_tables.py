"""Tables per layer group: how many blocks a sequence holds, and which prefix a window lets it share."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftcore.block_tables import NO_BLOCK, BlockTables, peak_blocks
from shiftcore.blocks import BlockPool

SIZE = 4
WINDOWS = st.lists(st.one_of(st.none(), st.integers(1, 20)), min_size=1, max_size=4).map(tuple)


@given(WINDOWS, st.integers(1, 60), st.integers(1, 16), st.randoms(use_true_random=False))
def test_no_sequence_holds_more_than_its_peak(
    windows: tuple[int | None, ...], length: int, budget: int, rng: random.Random
) -> None:
    pool = BlockPool(400, SIZE)
    tables = BlockTables(pool, windows, prefix_cache=True, max_chunk_tokens=budget)
    sequence, tokens, computed, most = tables.new(""), list(range(length)), 0, 0
    while computed < length:
        computed += rng.randint(1, min(budget, length - computed))
        tables.extend(sequence, tables.shortage(sequence, computed))
        most = max(most, len(pool.users))
        tables.advance(sequence, tokens, computed)
        for window, table in zip(windows, sequence.tables, strict=True):
            first = 0 if window is None else max(0, computed + 1 - window) // SIZE
            assert [block == NO_BLOCK for block in table] == [i < first for i in range(len(table))]
    assert most <= peak_blocks(windows, SIZE, length, budget)
    tables.release(sequence)
    assert pool.num_available == pool.num_blocks


@given(WINDOWS, st.integers(1, 60), st.sets(st.integers(0, 60)))
def test_a_hit_is_the_longest_whose_windows_are_there(
    windows: tuple[int | None, ...], length: int, evicted: set[int]
) -> None:
    """Against a search over all lengths."""
    pool = BlockPool(400, SIZE)
    tables = BlockTables(pool, windows, prefix_cache=True, max_chunk_tokens=length)
    tokens = list(range(length))
    first = tables.new("")
    tables.extend(first, tables.shortage(first, length))
    held = [list(table) for table in first.tables]
    tables.advance(first, tokens, length)
    tables.release(first)
    for number in sorted(evicted):
        if number in pool._cached:
            pool._evict(number)

    def fits(blocks: int) -> bool:
        end = blocks * SIZE
        starts = [0 if window is None else max(0, end + 1 - window) // SIZE for window in windows]
        return all(b in pool._keys for t, s in zip(held, starts, strict=True) for b in t[s:blocks])

    best = max(blocks for blocks in range((length - 1) // SIZE + 1) if fits(blocks))
    second = tables.new("")
    hit = tables.find(second, tokens)
    assert hit.num_blocks == best
    tables.take(second, hit)
    assert [len(table) for table in second.tables] == [best] * len(windows)
    pool.check()


@pytest.mark.parametrize("windows", [(), (0,), (None, -1)])
def test_a_group_without_a_window_to_see_is_refused(windows: tuple[int | None, ...]) -> None:
    with pytest.raises(ValueError, match="each layer group needs a window of at least one token or none"):
        BlockTables(BlockPool(1, SIZE), windows, prefix_cache=True, max_chunk_tokens=1)
