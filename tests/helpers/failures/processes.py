"""Looking at a rank from outside, so that it can be struck at a named point without a hook in it."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from shiftruntime.engine.liveness import process_state
from shiftruntime.parallel.arena import Arena

_RECVFROM = {"x86_64": "45", "aarch64": "207"}
_STOP_SECONDS = 5.0


@contextmanager
def arena_of(engine: int, ranks: int) -> Iterator[Arena]:
    """The shared memory of an engine's ranks, found among its open files."""
    link = next(fd for fd in Path(f"/proc/{engine}/fd").iterdir() if "shift-arena" in os.readlink(fd))
    opened = os.open(link, os.O_RDWR)
    try:
        yield Arena(opened, ranks)
    finally:
        os.close(opened)


def counters(arena: Arena, rank: int) -> tuple[int, int, int]:
    """(layers and collectives counted, collectives begun, collectives done)."""
    return arena.progress()[rank], *arena.position(rank)


def waits_for_a_plan(pid: int) -> bool:
    """Whether a process sleeps in a read of its socket, as a rank between two steps does."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == _RECVFROM.get(platform.machine())
    except OSError:
        return False


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it holds."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _STOP_SECONDS
    while (state := process_state(pid)) != "T":
        if state in "ZX" or time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} is in state {state} and not stopped")
        time.sleep(0.0005)


@cache
def patience() -> float:
    """How much longer than on an idle machine things may take: runnable processes per core when this was first asked.

    Not later: then the scenario itself is the load, and it must not loosen its own limits.
    """
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
