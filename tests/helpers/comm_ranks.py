"""Rank processes that run a fixed programme of collectives and compare each result with the plain formula."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from shiftcore.layout import Gear
from shiftruntime.parallel.arena import SLOT_BYTES, arena_bytes, create_memory
from shiftruntime.parallel.comm import Comm, CommError, Group
from shiftruntime.parallel.gloo import GlooComm
from shiftruntime.parallel.shared_memory import SharedMemoryComm
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64)
SHAPES = ((), (2, 0, 3), (17, 2, 3))
_JOIN_SECONDS = 100.0


@dataclass(frozen=True)
class Case:
    verb: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    gear: Gear
    over_sequence: bool

    def group(self, rank: int) -> Group:
        return self.gear.sequence_group(rank) if self.over_sequence else self.gear.tensor_group(rank)

    def part(self, rank: int, seed: int) -> Tensor:
        """What a rank puts in; sums of it depend on their order."""
        shape = (len(self.group(rank)), *self.shape) if self.verb == "all_to_all" else self.shape
        generator = torch.Generator().manual_seed(1000 * seed + rank)
        if self.dtype is torch.int64:
            return torch.randint(-(2**40), 2**40, shape, generator=generator)
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * 1e3).to(self.dtype)

    def expected(self, rank: int, seed: int) -> Tensor:
        group = self.group(rank)
        parts = [self.part(member, seed) for member in group]
        if self.verb == "all_gather":
            return torch.stack(parts)
        if self.verb == "all_to_all":
            return torch.stack([part[group.index(rank)] for part in parts])
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def programme(size: int) -> list[Case]:
    """Every verb, dtype and shape over every kind of group, kinds in turn; then some that take several rounds."""
    gears = [Gear(s, size // s) for s in range(1, size + 1) if size % s == 0]
    verbs = ("all_reduce", "all_gather", "all_to_all")
    small = [Case(*values) for values in product(verbs, DTYPES, SHAPES, gears, (True, False))]
    large = [
        Case(verb, dtype, (SLOT_BYTES // dtype.itemsize + 7,), Gear(size, 1), True)
        for verb, dtype in (("all_reduce", torch.float32), ("all_gather", torch.bfloat16), ("all_to_all", torch.int64))
    ]
    return small + large


def run_programme(comm: Comm) -> list[str]:
    """A digest per case; raises AssertionError where a result differs from the formula in shape, dtype or a bit."""
    digests = []
    for seed, case in enumerate(programme(comm.size)):
        result = getattr(comm, case.verb)(case.part(comm.rank, seed), case.group(comm.rank))
        expected = case.expected(comm.rank, seed)
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype), case
        assert torch.equal(result, expected), case
        digests.append(hashlib.sha256(result.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest())
        if seed % 50 == 0:
            comm.barrier()
    return digests


@dataclass(frozen=True)
class RaggedCase:
    """How many rows each rank sends to each: none, to one rank only, uneven, or more than a slot holds."""

    dtype: torch.dtype
    shape: tuple[int, ...]  # of a row
    counts: tuple[tuple[int, ...], ...]  # [from, to]

    def part(self, rank: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + rank)
        rows = torch.randint(-100, 100, (sum(self.counts[rank]), *self.shape), generator=generator)
        return rows.to(self.dtype)

    def expected(self, rank: int, seed: int) -> Tensor:
        parts = [self.part(sender, seed).split(to)[rank] for sender, to in enumerate(self.counts)]
        return torch.cat(parts)


def ragged_programme(size: int) -> list[RaggedCase]:
    rng = random.Random(size)
    ranks = range(size)
    many = SLOT_BYTES // 8000  # rows of 1000 int64; about one slot
    counts = [
        [[0] * size for _ in ranks],
        [[5 if to == 1 else 0 for to in ranks] for _ in ranks],
        [[3] * size if sender == 0 else [0] * size for sender in ranks],
        *([[rng.choice((0, 0, 1, 7, 30)) for _ in ranks] for _ in ranks] for _ in range(12)),
    ]
    large = [[[2 * many if (sender, to) == (0, size - 1) else to for to in ranks] for sender in ranks],
             [[many // size + 1 + sender for _ in ranks] for sender in ranks]]  # fmt: skip
    fixed = [tuple(map(tuple, table)) for table in counts]
    small = [RaggedCase(dtype, shape, table) for table in fixed for dtype in DTYPES for shape in ((), (3,), (2, 0))]
    return small + [RaggedCase(torch.int64, (1000,), tuple(map(tuple, table))) for table in large]


def run_ragged(comm: Comm) -> int:
    """Runs the whole programme; raises AssertionError where a result differs from the formula."""
    cases = ragged_programme(comm.size)
    for seed, case in enumerate(cases):
        result, counts = comm.all_to_all_v(case.part(comm.rank, seed), case.counts[comm.rank])
        expected = case.expected(comm.rank, seed)
        assert counts == [to[comm.rank] for to in case.counts], case
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype), case
        assert torch.equal(result, expected), case
        comm.all_reduce(torch.ones(2), tuple(range(comm.size)))  # a collective of fixed size in between
    return len(cases)


@dataclass(frozen=True)
class Seat:
    """Where a rank finds its group."""

    rank: int
    size: int
    arena: str  # path of the arena's descriptor
    rendezvous: str
    timeout_seconds: float = 60.0

    def shared_memory(self, is_stopped: Callable[[], bool] = lambda: False) -> SharedMemoryComm:
        fd = os.open(self.arena, os.O_RDWR)
        return SharedMemoryComm(fd, self.rank, self.size, self.timeout_seconds, is_stopped)

    def gloo(self) -> GlooComm:
        return GlooComm(f"file://{self.rendezvous}", self.rank, self.size, self.timeout_seconds)


def both_programmes(seat: Seat) -> tuple[list[str], list[str]]:
    gloo = seat.gloo()
    try:
        return run_programme(seat.shared_memory()), run_programme(gloo)
    finally:
        gloo.close()


def both_ragged(seat: Seat) -> tuple[int, int]:
    gloo = seat.gloo()
    try:
        return run_ragged(seat.shared_memory()), run_ragged(gloo)
    finally:
        gloo.close()


def absent_peer_shared_memory(seat: Seat) -> tuple[str, float]:
    """Rank 1 takes part once and then no more."""
    return _until_failure(seat, seat.shared_memory())


def absent_peer_gloo(seat: Seat) -> tuple[str, float]:
    return _until_failure(seat, seat.gloo())


def told_to_stop(seat: Seat) -> tuple[str, float]:
    told = time.monotonic() + 0.5
    return _until_failure(seat, seat.shared_memory(lambda: time.monotonic() >= told))


def _until_failure(seat: Seat, comm: Comm) -> tuple[str, float]:
    everyone = tuple(range(seat.size))
    comm.all_reduce(torch.ones(3), everyone)
    if seat.rank == 1:
        time.sleep(min(seat.timeout_seconds, 5.0) + 1.0)  # alive but elsewhere
        return "", 0.0
    started = time.monotonic()
    try:
        comm.all_reduce(torch.ones(3), everyone)
    except CommError as error:
        return str(error), time.monotonic() - started
    return "no error", 0.0


def run_in_processes(work: Callable[[Seat], Any], size: int, folder: Path, timeout_seconds: float = 60.0) -> list[Any]:
    """Results by rank; raises AssertionError with the text of a rank's failure."""
    context = multiprocessing.get_context("forkserver")
    # torch is imported once for all ranks; this module is not on the fork server's path
    context.set_forkserver_preload(["torch", "shiftruntime.parallel.gloo", "shiftruntime.parallel.shared_memory"])
    with _arena(size) as arena:
        ranks = []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            seat = Seat(rank, size, arena, str(folder / "rendezvous"), timeout_seconds)
            process = context.Process(target=_main, args=(work, seat, theirs))
            process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            return [_result(ours) for _, ours in ranks]
        finally:
            for process, ours in ranks:
                process.join(0.0 if process.exitcode is None and not ours.poll() else 5.0)
                process.kill()
                process.join()
                process.close()
                ours.close()


@contextmanager
def _arena(size: int) -> Iterator[str]:
    fd = create_memory("shift-test-arena", arena_bytes(size))
    try:
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def _result(connection: Connection) -> Any:
    assert connection.poll(_JOIN_SECONDS), f"a rank did not answer within {_JOIN_SECONDS:g} s"
    ok, value = connection.recv()
    assert ok, value
    return value


def _main(work: Callable[[Seat], Any], seat: Seat, connection: Connection) -> None:
    torch.set_num_threads(1)
    try:
        connection.send((True, work(seat)))
    except BaseException as error:
        connection.send((False, f"rank {seat.rank}: {type(error).__name__}: {error}"))
        raise
