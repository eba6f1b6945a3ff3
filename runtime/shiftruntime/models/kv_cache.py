"""The paged KV cache of one rank: the same in all gears, because a rank owns the same heads in all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shiftruntime.config import ModelConfig


@dataclass(frozen=True)
class KvCache:
    """k, v: [layers, blocks, block_size, kv heads of rank, head_dim]."""

    k: Tensor
    v: Tensor

    @property
    def block_size(self) -> int:
        return self.k.shape[2]

    @property
    def num_blocks(self) -> int:
        return self.k.shape[1]

    def layer(self, i: int) -> tuple[Tensor, Tensor]:
        """Keys and values by slot, [blocks * block_size, kv heads of rank, head_dim], views."""
        return self.k[i].flatten(0, 1), self.v[i].flatten(0, 1)


def kv_block_bytes(config: ModelConfig, ranks: int, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block on one rank, keys and values of all layers; raises StartupError(InvalidLayout)."""
    heads = len(config.heads(ranks).kv_range(0))
    return 2 * config.num_layers * block_size * heads * config.head_dim * dtype.itemsize


def allocate_kv(config: ModelConfig, ranks: int, num_blocks: int, block_size: int, dtype: torch.dtype) -> KvCache:
    """A zeroed cache for one rank; raises StartupError(InvalidLayout)."""
    heads = len(config.heads(ranks).kv_range(0))
    shape = (config.num_layers, num_blocks, block_size, heads, config.head_dim)
    return KvCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
