"""Collectives of processes on one host through shared memory.

The arena holds flags and two slots per rank. Collective number k uses slot k mod 2: a rank
waits until everyone has begun collective k-1 (then nobody still reads slot k mod 2 from collective k-2), writes its
part, publishes k, waits for the members of its group, and reads. Each rank sums in group order, so the result has the
same bits everywhere. Larger tensors travel in several rounds. Where ranks send unequal amounts, the first part begins
with the sender's counts, from which all derive the same number of rounds.

A flag is one aligned 8-byte store, ordered after the data on x86-64 (total store order); on other machines use
``GlooComm``. Waiting spins briefly, then yields the core, then sleeps: with more ranks than cores a spinning rank would
only delay the one it waits for.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shiftruntime.parallel.arena import LINE_BYTES, SLOT_BYTES, Arena, Flags
from shiftruntime.parallel.comm import CommError, Group

_SPINS = 50
_YIELDS = 2000
_SLEEP_SECONDS = 50e-6
_CHECK_SECONDS = 0.2


class SharedMemoryComm:
    """One rank's end of the arena.

    ``is_stopped`` is asked while waiting, so that a group whose peer is known to be dead ends at once. ``timeout``
    bounds the time for which the awaited rank may stand still; a slow rank that makes progress is waited for.
    """

    def __init__(
        self,
        fd: int,
        rank: int,
        size: int,
        timeout_seconds: float = 10.0,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rank = rank
        self.size = size
        self._timeout_seconds = timeout_seconds
        self._is_stopped = is_stopped
        self._arena = Arena(fd, size)
        self._begun, self._done, self._ticks = self._arena.begun, self._arena.done, self._arena.ticks
        data = np.frombuffer(self._arena.map, dtype=np.uint8, offset=self._arena.data_offset)
        self._slots = torch.from_numpy(data).view(size, 2, SLOT_BYTES)
        self._count = 0
        self._everyone = tuple(range(size))

    def all_reduce(self, x: Tensor, group: Group) -> Tensor:
        self.tick()
        if len(group) == 1:
            return x
        flat = x.reshape(-1)
        out = torch.empty_like(flat)
        for part, result in self._rounds(flat, out, 1):
            slots = self._exchange(part, group)
            torch.add(slots[0], slots[1], out=result)
            for other in slots[2:]:
                result += other
        return out.view(x.shape)

    def all_gather(self, x: Tensor, group: Group) -> Tensor:
        self.tick()
        if len(group) == 1:
            return x.unsqueeze(0)
        flat = x.reshape(-1)
        out = flat.new_empty(len(group), flat.numel())
        for part, result in self._rounds(flat, out.t(), 1):
            for i, other in enumerate(self._exchange(part, group)):
                result[:, i] = other
        return out.view(len(group), *x.shape)

    def all_to_all(self, x: Tensor, group: Group) -> Tensor:
        self.tick()
        if len(group) == 1:
            return x
        me = group.index(self.rank)
        flat = x.reshape(len(group), -1)
        out = torch.empty_like(flat)
        for part, result in self._rounds(flat.t(), out.t(), len(group)):
            for i, other in enumerate(self._exchange(part.t().reshape(-1), group)):
                result[:, i] = other.view(len(group), -1)[me]
        return out.view(x.shape)

    def all_to_all_v(self, x: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        assert len(counts) == self.size, f"all_to_all_v needs a count for each of {self.size} ranks, got {len(counts)}"
        assert sum(counts) == x.shape[0], f"counts of {sum(counts)} rows for {x.shape[0]}"
        self.tick()
        if self.size == 1:
            return x, list(counts)
        row_bytes = math.prod(x.shape[1:]) * x.element_size()
        raw = x.reshape(-1).view(torch.uint8)
        head_bytes = -(-8 * self.size // LINE_BYTES) * LINE_BYTES
        room = SLOT_BYTES - head_bytes
        slots = self._exchange_ragged(counts, raw[:room], head_bytes)
        sent = [slot[: 8 * self.size].view(torch.int64).tolist() for slot in slots]  # [from, to]
        out = raw.new_empty(sum(to[self.rank] for to in sent) * row_bytes)
        for first in range(0, max(1, max(map(sum, sent)) * row_bytes), room):
            if first:
                slots = self._exchange_ragged(counts, raw[first : first + room], head_bytes)
            self._take_own([slot[head_bytes:] for slot in slots], sent, row_bytes, first, out)
        received = [to[self.rank] for to in sent]
        return out.view(x.dtype).view(sum(received), *x.shape[1:]), received

    def _take_own(self, windows: list[Tensor], sent: list[list[int]], row_bytes: int, first: int, out: Tensor) -> None:
        """Copy what is for this rank from every rank's bytes [first, first + window)."""
        place = 0
        for window, to in zip(windows, sent, strict=True):
            start, size = sum(to[: self.rank]) * row_bytes, to[self.rank] * row_bytes  # in the sender's bytes
            begin, end = max(start, first), min(start + size, first + len(window))
            if begin < end:
                out[place + begin - start : place + end - start] = window[begin - first : end - first]
            place += size

    def tick(self) -> None:
        self._ticks[self.rank] += 1

    def barrier(self) -> None:
        if self.size > 1:
            self._exchange(torch.empty(0, dtype=torch.uint8), self._everyone)

    @staticmethod
    def _rounds(source: Tensor, target: Tensor, width: int) -> list[tuple[Tensor, Tensor]]:
        """Cut both along dimension 0 so that a round of ``width`` columns fits in a slot."""
        rows = max(1, SLOT_BYTES // (source.element_size() * width))
        return [(source[i : i + rows], target[i : i + rows]) for i in range(0, len(source), rows)]

    def _exchange(self, part: Tensor, group: Group) -> list[Tensor]:
        """Publish ``part`` (flat) and return the parts of all members, as views that the next exchange keeps."""
        size = part.numel() * part.element_size()
        slot = self._begin()
        if size:
            slot[:size].view(part.dtype).copy_(part)
        return [slot[:size].view(part.dtype) for slot in self._publish(group)]

    def _exchange_ragged(self, counts: Sequence[int], part: Tensor, head_bytes: int) -> list[Tensor]:
        """Publish counts and some bytes to all; returns the slots of all ranks."""
        slot = self._begin()
        slot[: 8 * self.size].view(torch.int64).copy_(torch.tensor(counts))
        slot[head_bytes : head_bytes + len(part)] = part
        return self._publish(self._everyone)

    def _begin(self) -> Tensor:
        """The own slot of the next collective, once nobody reads it any more."""
        self._count += 1
        self._begun[self.rank] = self._count
        self._wait(self._begun, self._everyone, self._count - 1)
        return self._slots[self.rank, self._count % 2]

    def _publish(self, group: Group) -> list[Tensor]:
        """The slots of the group once all members have filled theirs."""
        self._done[self.rank] = self._count
        self._wait(self._done, group, self._count)
        return [self._slots[rank, self._count % 2] for rank in group]

    def _wait(self, flags: Flags, ranks: Group, count: int) -> None:
        for rank in ranks:
            if flags[rank] < count:
                self._wait_for(flags, rank, count)

    def _wait_for(self, flags: Flags, rank: int, count: int) -> None:
        for _ in range(_SPINS):
            if flags[rank] >= count:
                return
        for _ in range(_YIELDS):
            if flags[rank] >= count:
                return
            os.sched_yield()
        deadline = next_check = time.monotonic()
        deadline += self._timeout_seconds
        while flags[rank] < count:
            time.sleep(_SLEEP_SECONDS)
            now = time.monotonic()
            if now < next_check:
                continue
            next_check = now + _CHECK_SECONDS
            if self._is_stopped():
                raise CommError(f"rank {self.rank} was told to stop while it waited for rank {rank}")
            if now > deadline:
                raise CommError(
                    f"rank {rank} did not reach collective {count} within {self._timeout_seconds:g} s "
                    f"(rank {self.rank} waits, rank {rank} is at {int(flags[rank])})"
                )
