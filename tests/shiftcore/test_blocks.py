"""The block pool: every block is free, cached or used, once; free ones go first, the lowest before the others."""

from __future__ import annotations

from collections import Counter

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
        if allocates and number <= pool.num_available:
            taken = pool.allocate(number)
            assert taken == sorted(free)[:number], "the lowest free numbers, in order"
            free -= set(taken)
            held.append(taken)
        elif held:
            returned = held.pop(number % len(held))
            pool.release(returned)
            free |= set(returned)
        pool.check()
        assert pool.num_available == len(free)


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(["allocate", "publish", "share", "release"]), st.integers(0, 9)), max_size=60),
)
def test_pool_with_keys_agrees_with_a_list(num_blocks: int, actions: list[tuple[str, int]]) -> None:
    """``content``: block -> key; ``unused``: keyed blocks without users, the longest unused first."""
    pool = BlockPool(num_blocks, 4)
    users: Counter[int] = Counter()
    content: dict[int, int] = {}
    unused: list[int] = []
    for action, number in actions:
        used = sorted(users)
        if action == "allocate" and len(users) < num_blocks:
            free = [b for b in range(num_blocks) if b not in users and b not in unused]
            expected = free[0] if free else unused.pop(0)
            content.pop(expected, None)
            assert pool.allocate(1) == [expected]
            users[expected] += 1
        elif action == "publish" and used:
            block = used[number % len(used)]
            pool.publish(block, number)
            if number not in content.values() and block not in content:
                content[block] = number
        elif action == "share" and content:
            block = sorted(content)[number % len(content)]
            pool.share([block])
            users[block] += 1
            unused = [b for b in unused if b != block]
        elif action == "release" and used:
            block = used[number % len(used)]
            pool.release([block])
            users[block] -= 1
            if not users[block]:
                del users[block]
                unused += [block] * (block in content)
        pool.check()
        assert pool.users == users
        assert pool.num_cached == len(unused)
        assert [pool.lookup(key) for key in range(10)] == [
            next((b for b, k in content.items() if k == key), None) for key in range(10)
        ]
    pool.clear_cache()
    pool.check()
    assert (pool.num_cached, pool.num_available) == (0, num_blocks - len(users))


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert BlockPool(1, 4).blocks_for(tokens) == blocks


def test_a_block_is_released_once() -> None:
    pool = BlockPool(3, 4)
    taken = pool.allocate(2)
    pool.release(taken)
    with pytest.raises(AssertionError, match="block 0 is released but not in use"):
        pool.release(taken)
    with pytest.raises(AssertionError, match="5 blocks asked, 3 available"):
        pool.allocate(5)


def test_only_known_content_is_shared() -> None:
    pool = BlockPool(3, 4)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="block 0 is shared but not published"):
        pool.share([block])
    with pytest.raises(AssertionError, match="block 2 is published but not in use"):
        pool.publish(2, "key")


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_pool_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_blocks} blocks of {block_size}"):
        BlockPool(num_blocks, block_size)
