"""All ranks in one process, one thread each: the test twin of the shared-memory collectives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Board:
    """Where the ranks of one process leave their tensors for each other."""

    def __init__(self, ranks: int, timeout_seconds: float = 60.0) -> None:
        self.ranks = ranks
        self.tensors: list[Tensor | None] = [None] * ranks
        self._timeout_seconds = timeout_seconds
        self._barriers: dict[tuple[int, ...], threading.Barrier] = {}
        self._lock = threading.Lock()
        self._broken = False

    def wait(self, group: tuple[int, ...]) -> None:
        """Until all of the group are here; raises threading.BrokenBarrierError if one never comes."""
        with self._lock:
            barrier = self._barriers.setdefault(group, threading.Barrier(len(group)))
            if self._broken:
                barrier.abort()
        barrier.wait(self._timeout_seconds)

    def abort(self) -> None:
        """Wake everybody who waits for a rank that failed."""
        with self._lock:
            self._broken = True
            for barrier in self._barriers.values():
                barrier.abort()


class LocalComm:
    """Implements parallel.comm.Comm over a Board; sums in group order, so that members agree bitwise."""

    def __init__(self, board: Board, rank: int) -> None:
        self.rank = rank
        self.size = board.ranks
        self._board = board

    def _exchange(self, x: Tensor, group: tuple[int, ...], combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        assert self.rank in group, f"rank {self.rank} is not in group {group}"
        assert x.is_contiguous(), f"collectives take contiguous tensors, got strides {x.stride()}"
        self._board.tensors[self.rank] = x
        self._board.wait(group)
        parts = [part for member in group if (part := self._board.tensors[member]) is not None]
        result = combine(parts)
        self._board.wait(group)
        return result

    def all_reduce(self, x: Tensor, group: tuple[int, ...]) -> Tensor:
        def add(parts: list[Tensor]) -> Tensor:
            total = parts[0].clone()
            for part in parts[1:]:
                total += part
            return total

        return self._exchange(x, group, add)

    def all_gather(self, x: Tensor, group: tuple[int, ...]) -> Tensor:
        return self._exchange(x, group, torch.stack)

    def all_to_all(self, x: Tensor, group: tuple[int, ...]) -> Tensor:
        assert x.shape[0] == len(group), f"all_to_all needs {len(group)} leading entries, got {x.shape[0]}"
        mine = group.index(self.rank)
        return self._exchange(x, group, lambda parts: torch.stack([part[mine] for part in parts]))

    def all_to_all_v(self, x: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        assert len(counts) == self.size, f"all_to_all_v needs a count for each of {self.size} ranks, got {len(counts)}"
        assert sum(counts) == x.shape[0], f"counts of {sum(counts)} rows for {x.shape[0]}"
        everyone = tuple(range(self.size))
        sent = self.all_gather(torch.tensor(counts), everyone).tolist()  # [from, to]

        def mine(parts: list[Tensor]) -> Tensor:
            return torch.cat([torch.split(part, to)[self.rank] for part, to in zip(parts, sent, strict=True)])

        return self._exchange(x, everyone, mine), [to[self.rank] for to in sent]

    def tick(self) -> None:
        """Nobody watches: the ranks are threads of one process."""

    def barrier(self) -> None:
        self._board.wait(tuple(range(self.size)))


def run_ranks(ranks: int, work: Callable[[LocalComm], Result], timeout_seconds: float = 60.0) -> list[Result]:
    """Run ``work`` once per rank; returns results by rank, raises the first rank's own error."""
    board = Board(ranks, timeout_seconds)

    def guarded(rank: int) -> Result:
        done = False
        try:
            result = work(LocalComm(board, rank))
            done = True
            return result
        finally:
            if not done:
                board.abort()

    with ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(ranks)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    for error in own or errors:
        raise error
    return [future.result() for future in futures]
