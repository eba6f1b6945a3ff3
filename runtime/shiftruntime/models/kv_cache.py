"""The paged KV cache of one rank: the same in all gears, because a rank owns the same heads in all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from shiftcore.layer_groups import LayerGroup, layers_per_block
from torch import Tensor

from shiftruntime.config import ModelConfig


@dataclass(frozen=True)
class KvCache:
    """k, v: [layers per block, blocks, block_size, kv heads of rank, head_dim].

    Each group of layers has block tables of its own. Without groups one table serves all layers.
    """

    k: Tensor
    v: Tensor
    groups: tuple[LayerGroup, ...] = ()

    @property
    def block_size(self) -> int:
        return self.k.shape[2]

    @property
    def num_blocks(self) -> int:
        return self.k.shape[1]

    def layer(self, i: int) -> tuple[Tensor, Tensor]:
        """Keys and values by slot, [blocks * block_size, kv heads of rank, head_dim], views."""
        place = next((group.layers.index(i) for group in self.groups if i in group.layers), i)
        return self.k[place].flatten(0, 1), self.v[place].flatten(0, 1)


def kv_block_bytes(
    config: ModelConfig, ranks: int, block_size: int, dtype: torch.dtype, groups: tuple[LayerGroup, ...] = ()
) -> int:
    """Bytes of one block on one rank, keys and values of its layers; raises StartupError(InvalidLayout)."""
    heads = len(config.heads(ranks).kv_range(0))
    layers = layers_per_block(groups) if groups else config.num_layers
    return 2 * layers * block_size * heads * config.head_dim * dtype.itemsize


def allocate_kv(
    config: ModelConfig, ranks: int, num_blocks: int, block_size: int, dtype: torch.dtype,
    groups: tuple[LayerGroup, ...] = (),
) -> KvCache:  # fmt: skip
    """A zeroed cache for one rank; raises StartupError(InvalidLayout)."""
    heads = len(config.heads(ranks).kv_range(0))
    layers = layers_per_block(groups) if groups else config.num_layers
    shape = (layers, num_blocks, block_size, heads, config.head_dim)
    return KvCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), groups)
