"""Layers in groups of one window each, equally large but for a little waste."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiftcore.layer_groups import group_layers, layers_per_block


def alternating(layers: int, every: int) -> list[int | None]:
    """Every n-th layer has full attention, as in Gemma."""
    return [None if (i + 1) % every == 0 else 512 for i in range(layers)]


@pytest.mark.parametrize(
    ("windows", "groups", "size"),
    [
        ([None] * 32, 1, 32),  # Llama: one group, nothing changes
        ([4096] * 32, 1, 32),  # Mistral 7B 0.1
        (alternating(18, 6), 6, 3),  # Gemma 3 270M: 15 sliding, 3 full
        (alternating(26, 6), 7, 4),  # 1B: 22 and 4; two places of 28 stay empty
        (alternating(34, 6), 7, 5),  # 4B: 29 and 5
        (alternating(26, 2), 2, 13),  # Gemma 2 2B
    ],
)
def test_known_models(windows: list[int | None], groups: int, size: int) -> None:
    found = group_layers(windows)
    assert (len(found), layers_per_block(found)) == (groups, size)
    assert found[0].window == (None if None in windows else windows[0])


@given(st.lists(st.sampled_from([None, 4, 8]), min_size=1, max_size=60))
def test_every_layer_is_in_one_group_of_its_window_and_little_is_wasted(windows: list[int | None]) -> None:
    groups = group_layers(windows)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(len(windows)))
    assert all(windows[layer] == group.window for group in groups for layer in group.layers)
    assert len(groups) * layers_per_block(groups) <= 1.15 * len(windows)
