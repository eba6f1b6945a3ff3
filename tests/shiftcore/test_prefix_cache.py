"""Digests name a block's tokens, all before them and the tenant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftcore.prefix_cache import PrefixChain

TOKENS = st.lists(st.integers(0, 2), max_size=12)


@given(st.sampled_from(["", "a", "ab"]), TOKENS, st.sampled_from(["", "a", "ab"]), TOKENS)
def test_digests_are_equal_where_tenant_and_prefix_are(one: str, left: list[int], two: str, right: list[int]) -> None:
    n = min(len(left), len(right)) // 3
    digests = PrefixChain(one, 3).digests(left, n), PrefixChain(two, 3).digests(right, n)
    for i in range(n):
        same = one == two and left[: 3 * (i + 1)] == right[: 3 * (i + 1)]
        assert (digests[0][i] == digests[1][i]) == same


@given(TOKENS)
def test_digests_grow_with_the_tokens(tokens: list[int]) -> None:
    chain = PrefixChain("t", 3)
    for end in range(len(tokens) + 1):
        assert chain.digests(tokens[:end], end // 3) == PrefixChain("t", 3).digests(tokens, end // 3)


def test_a_block_that_is_not_full_has_no_digest() -> None:
    with pytest.raises(AssertionError, match="5 tokens do not fill 2 blocks of 3"):
        PrefixChain("", 3).digests([1] * 5, 2)
