"""Collectives over torch.distributed with gloo: the slow twin of shared memory, and the way across hosts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from shiftcore.layout import Gear
from torch import Tensor

from shiftruntime.parallel.comm import CommError, Group


class GlooComm:
    """Every collective is an all-gather followed by a local choice or sum in group order."""

    def __init__(self, init_method: str, rank: int, size: int, timeout_seconds: float = 10.0) -> None:
        self.rank = rank
        self.size = size
        timeout = timedelta(seconds=timeout_seconds)
        dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=size, timeout=timeout)
        self._groups: dict[Group, Any] = {
            group: dist.new_group(list(group), timeout=timeout) for group in _all_groups(size)
        }

    def all_reduce(self, x: Tensor, group: Group) -> Tensor:
        if len(group) == 1:
            return x
        parts = self.all_gather(x, group)
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
        return total

    def all_gather(self, x: Tensor, group: Group) -> Tensor:
        if len(group) == 1:
            return x.unsqueeze(0)
        # As bytes, because gloo lacks some dtypes.
        raw = x.contiguous().view(-1).view(torch.uint8)
        parts = [torch.empty_like(raw) for _ in group]
        try:
            dist.all_gather(parts, raw, group=self._groups[group])
        except RuntimeError as error:  # the peer is not named
            raise CommError(f"rank {self.rank} did not complete an all_gather of ranks {group}: {error}") from error
        return torch.stack([part.view(x.dtype).view(x.shape) for part in parts])

    def all_to_all(self, x: Tensor, group: Group) -> Tensor:
        if len(group) == 1:
            return x
        return self.all_gather(x, group)[:, group.index(self.rank)].contiguous()

    def all_to_all_v(self, x: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        assert len(counts) == self.size, f"all_to_all_v needs a count for each of {self.size} ranks, got {len(counts)}"
        assert sum(counts) == x.shape[0], f"counts of {sum(counts)} rows for {x.shape[0]}"
        everyone = tuple(range(self.size))
        sent = self.all_gather(torch.tensor(counts), everyone).tolist()  # [from, to]
        padded = x.new_zeros((max(map(sum, sent)), *x.shape[1:]))
        padded[: x.shape[0]] = x
        parts = zip(self.all_gather(padded, everyone), sent, strict=True)
        rows = [part[sum(to[: self.rank]) : sum(to[: self.rank + 1])] for part, to in parts]
        return torch.cat(rows), [to[self.rank] for to in sent]

    def tick(self) -> None:
        """Nobody watches: gloo has deadlines of its own."""

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


def _all_groups(size: int) -> list[Group]:
    """Every sequence and tensor group of every gear, in the same order on every rank."""
    gears = [Gear(s, t) for s, t in product(range(1, size + 1), repeat=2) if s * t == size]
    groups = {g.sequence_group(r) for g in gears for r in range(size)}
    groups |= {g.tensor_group(r) for g in gears for r in range(size)}
    return sorted(group for group in groups if len(group) > 1)
