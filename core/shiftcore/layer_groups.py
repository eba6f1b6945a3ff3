"""Which layers share a block: sliding layers need only the last tokens, so they get blocks of their own.

All blocks come from one pool and are equally large, whatever group they serve: a block holds the keys and values of
``layers_per_block`` layers. That number divides the layers of each kind with as little waste as is sensible.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_WASTE = 0.15  # of the layers: empty places in blocks, for fewer and larger groups


@dataclass(frozen=True)
class LayerGroup:
    """Layers with one attention window and one block table per sequence."""

    window: int | None  # tokens that a query sees, its own included; None: all
    layers: tuple[int, ...]


def group_layers(windows: Sequence[int | None]) -> tuple[LayerGroup, ...]:
    """Groups for layers with these windows, full attention first; one group if all are alike."""
    kinds: defaultdict[int | None, list[int]] = defaultdict(list)
    for layer, window in enumerate(windows):
        kinds[window].append(layer)
    size = _layers_per_block([len(layers) for layers in kinds.values()])
    return tuple(
        LayerGroup(window, tuple(kinds[window][first : first + size]))
        for window in sorted(kinds, key=lambda w: (w is not None, w or 0))
        for first in range(0, len(kinds[window]), size)
    )


def layers_per_block(groups: Sequence[LayerGroup]) -> int:
    return max(len(group.layers) for group in groups)


def _layers_per_block(counts: list[int]) -> int:
    """The largest size that wastes little; 1 wastes nothing."""
    return next(
        size for size in range(min(counts), 0, -1) if sum(-count % size for count in counts) <= _MAX_WASTE * sum(counts)
    )
