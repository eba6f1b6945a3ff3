"""Layout of the shared memory through which the ranks of one host exchange tensors and show that they live.

Kept free of torch, so that the engine process can watch progress without loading it.
"""

from __future__ import annotations

import mmap
import os
import platform

import numpy as np
from numpy.typing import NDArray

LINE_BYTES = 64  # one cache line per flag, so that ranks do not write to each other's line
SLOT_BYTES = 8 << 20  # a part of a tensor; larger tensors travel in several rounds
_FLAG_LINES = 3  # begun, done, ticks

Flags = NDArray[np.int64]


def supported() -> bool:
    """Whether plain stores publish data in order on this machine (total store order)."""
    return platform.machine() in ("x86_64", "AMD64")


class Arena:
    """The mapped memory: ``begun``, ``done`` and ``ticks`` per rank, and two data slots per rank.

    begun: number of the collective that a rank has begun. done: number of the one whose part it has published.
    ticks: grows with every layer and every collective; what a watchdog looks at.
    """

    def __init__(self, fd: int, ranks: int) -> None:
        self.ranks = ranks
        self.map = mmap.mmap(fd, arena_bytes(ranks))
        per_line = LINE_BYTES // 8
        flags = np.frombuffer(self.map, dtype=np.int64, count=_FLAG_LINES * ranks * per_line)
        self.begun, self.done, self.ticks = flags.reshape(_FLAG_LINES, ranks, per_line)[:, :, 0]

    @property
    def data_offset(self) -> int:
        return _FLAG_LINES * self.ranks * LINE_BYTES

    def progress(self) -> tuple[int, ...]:
        """A value per rank that grows while the rank computes."""
        return tuple(int(tick) for tick in self.ticks)

    def position(self, rank: int) -> tuple[int, int]:
        """How far a rank is: collectives begun and done."""
        return int(self.begun[rank]), int(self.done[rank])


def arena_bytes(ranks: int) -> int:
    """Size of the arena for ``ranks`` ranks."""
    return ranks * (_FLAG_LINES * LINE_BYTES + 2 * SLOT_BYTES)


def create_memory(name: str, size_bytes: int) -> int:
    """A file descriptor of anonymous shared memory: it has no path, so a killed process leaves nothing behind."""
    fd = os.memfd_create(name)
    os.ftruncate(fd, size_bytes)
    return fd
