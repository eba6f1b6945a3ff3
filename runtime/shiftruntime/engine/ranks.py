"""The rank processes of one engine: started together, watched together, ended together."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from shiftprotos import contract

from shiftruntime.engine.memory import limit_mib, oom_kills
from shiftruntime.errors import RankError
from shiftruntime.parallel.arena import Arena, arena_bytes, create_memory, supported
from shiftruntime.worker.frames import FrameError, FrameSocket
from shiftruntime.worker.messages import Done, Failed, FromRank, Hello, LoadProgress, StepPlan

R = TypeVar("R", bound=msgspec.Struct)

_TICK_SECONDS = 0.5
_EXIT_SECONDS = 3.0
_COMM_TIMEOUT_SECONDS = 600.0  # the engine's watchdog ends a stuck group long before; a slow peer is waited for


class RankGroup:
    """P processes. A death, a failure or a standstill of one raises RankError and names it."""

    def __init__(self, ranks: int, selector: selectors.BaseSelector, stall_seconds: float) -> None:
        self.size = ranks
        self._selector = selector
        self._stall_seconds = stall_seconds
        self._oom_kills = oom_kills()
        self._arena_fd = create_memory("shift-arena", arena_bytes(ranks))
        self._arena = Arena(self._arena_fd, ranks)
        self.weights_fd = create_memory("shift-weights", 0)
        self._rendezvous = "" if supported() else tempfile.mkdtemp(prefix="shift-")
        self._inbox: list[list[FromRank]] = [[] for _ in range(ranks)]
        self._sockets: list[FrameSocket[FromRank]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.last_step = 0
        for rank in range(ranks):
            self._spawn(rank)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    def _spawn(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self._arena_fd, self.weights_fd)
        command = [
            *(sys.executable, "-m", "shiftruntime.worker"),
            *("--rank", str(rank), "--ranks", str(self.size), "--parent", str(os.getpid())),
            *("--socket-fd", str(fds[0]), "--arena-fd", str(fds[1]), "--weights-fd", str(fds[2])),
            *("--threads", str(max(1, len(os.sched_getaffinity(0)) // self.size))),
            *("--timeout-seconds", str(_COMM_TIMEOUT_SECONDS)),
            *(("--rendezvous", os.path.join(self._rendezvous, "gloo")) if self._rendezvous else ()),
        ]
        self._processes.append(subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL))
        theirs.close()
        ours.settimeout(self._stall_seconds)  # bounds a send; nothing is read before it is there
        frames: FrameSocket[FromRank] = FrameSocket(ours, FromRank)
        self._sockets.append(frames)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._receive(rank))

    def progress(self) -> tuple[int, ...]:
        """A value per rank that grows while it computes."""
        return self._arena.progress()

    def wait_hello(self, timeout_seconds: float) -> None:
        self.collect(Hello, range(self.size), timeout_seconds, "start")

    def send(self, rank: int, message: msgspec.Struct) -> None:
        try:
            self._sockets[rank].send(message)
        except TimeoutError as error:  # a stopped rank empties its channel no more
            raise self._stalled(rank, f"and takes no {type(message).__name__}") from error
        except OSError as error:
            raise self._death(rank) from error

    def ask(self, rank: int, message: msgspec.Struct, answer: type[R], timeout_seconds: float) -> R:
        self.send(rank, message)
        return self.collect(answer, [rank], timeout_seconds, type(message).__name__)[0]

    def ask_all(self, message: msgspec.Struct, answer: type[R], timeout_seconds: float) -> list[R]:
        for rank in range(self.size):
            self.send(rank, message)
        return self.collect(answer, range(self.size), timeout_seconds, type(message).__name__)

    def run(self, plan: StepPlan) -> Done:
        """Run one step on all ranks; other sockets of the selector are served meanwhile.

        The rank that is furthest behind must show life: a layer, a collective, or time on a core. A slow one is waited
        for; one that shows none for ``stall_seconds`` fails the group.
        """
        self.last_step = plan.step
        for rank in range(self.size):
            self.send(rank, plan)
        now = time.monotonic()
        seen = [(self._life(rank), now) for rank in range(self.size)]
        while not all(self._inbox):
            self._pump(_TICK_SECONDS)
            now = time.monotonic()
            for rank in range(self.size):
                life = self._life(rank)
                if life != seen[rank][0]:
                    seen[rank] = life, now
            behind = self._furthest_behind()
            if behind is not None and now - seen[behind][1] > self._stall_seconds:
                raise self._stalled(behind, f"in step {plan.step} ({plan.gear})")
        dones = [self._take(rank, Done) for rank in range(self.size)]
        for rank, done in enumerate(dones):
            if (done.step, done.tokens) != (plan.step, dones[0].tokens):
                raise RankError(
                    contract.REASON_RANK_FAILED,
                    f"rank {rank} disagrees with rank 0 in step {plan.step} ({plan.gear}): "
                    f"step {done.step}, tokens {done.tokens[:8]} against {dones[0].tokens[:8]}",
                )
        return min(dones, key=lambda done: done.generation)

    def collect(
        self,
        answer: type[R],
        ranks: range | list[int],
        timeout_seconds: float,
        what: str,
        on_progress: Callable[[LoadProgress], None] = lambda _: None,
    ) -> list[R]:
        """One answer of each rank within the deadline."""
        deadline = time.monotonic() + timeout_seconds
        answers: dict[int, R] = {}
        while len(answers) < len(ranks):
            for rank in ranks:
                while self._inbox[rank] and rank not in answers:
                    message = self._inbox[rank].pop(0)
                    if isinstance(message, LoadProgress):
                        on_progress(message)
                        continue
                    assert isinstance(message, answer), f"rank {rank} answered {message} to {what}"
                    answers[rank] = message
            if len(answers) == len(ranks):
                break
            if time.monotonic() > deadline:
                late = [rank for rank in ranks if rank not in answers]
                raise RankError(
                    contract.REASON_START_TIMEOUT, f"ranks {late} did not answer {what} within {timeout_seconds:g} s"
                )
            self._pump(_TICK_SECONDS)
        return [answers[rank] for rank in ranks]

    def close(self) -> None:
        """End all ranks: politely, then by force."""
        for frames in self._sockets:
            with contextlib.suppress(OSError):
                # Seen as the end of the channel by a rank that waits for a message, and by one that waits for a peer.
                frames.socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _EXIT_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # also ends a stopped process
                process.wait(_EXIT_SECONDS)
        for frames in self._sockets:
            with contextlib.suppress(KeyError):
                self._selector.unregister(frames.socket)
            frames.close()
        if self._rendezvous:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self._rendezvous, "gloo"))
                os.rmdir(self._rendezvous)
        os.close(self.weights_fd)
        os.close(self._arena_fd)

    def _take(self, rank: int, kind: type[R]) -> R:
        message = self._inbox[rank].pop(0)
        assert isinstance(message, kind), f"rank {rank} answered {message}"
        return message

    def _pump(self, timeout_seconds: float) -> None:
        for key, _ in self._selector.select(timeout_seconds):
            key.data()

    def _receive(self, rank: int) -> None:
        try:
            messages = self._sockets[rank].receive_available()
        except ConnectionError:
            messages = None
        except FrameError as error:
            raise RankError(contract.REASON_RANK_FAILED, f"rank {rank} sent a broken frame: {error}") from error
        if messages is None:
            raise self._death(rank)
        for message in messages:
            if isinstance(message, Failed):
                raise RankError(message.reason, message.message)
        self._inbox[rank] += messages

    def _death(self, rank: int) -> RankError:
        process = self._processes[rank]
        try:
            code = process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return RankError(contract.REASON_RANK_FAILED, f"rank {rank} closed its channel but still runs")
        if code == -signal.SIGKILL and oom_kills() > self._oom_kills:
            message = f"the kernel killed rank {rank} for lack of memory; the limit is {limit_mib()}, raise it"
            return RankError(contract.REASON_OUT_OF_MEMORY, message)
        if code == -signal.SIGKILL:
            message = f"rank {rank} was killed (SIGKILL), often for lack of memory"
            return RankError(contract.REASON_RANK_FAILED, message)
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return RankError(contract.REASON_RANK_FAILED, f"rank {rank} ended with {how} at step {self.last_step}")

    def _life(self, rank: int) -> tuple[int, ...]:
        """Changes while the rank computes: its counters, and the CPU time the kernel has booked for it."""
        return (self.progress()[rank], *self._arena.position(rank), _cpu_ticks(self._processes[rank].pid))

    def _furthest_behind(self) -> int | None:
        """The unfinished rank for which the others wait; one that waits itself has gone further in the collective."""
        unfinished = [rank for rank in range(self.size) if not self._inbox[rank]]
        progress = self.progress()
        return min(unfinished, key=lambda rank: (progress[rank], *self._arena.position(rank)), default=None)

    def _stalled(self, rank: int, where: str) -> RankError:
        return RankError(
            contract.REASON_RANK_FAILED,
            f"rank {rank} made no progress for {self._stall_seconds:g} s {where}; "
            f"progress of the ranks: {self.progress()}",
        )


def _cpu_ticks(pid: int) -> int:
    """User and system time of a process in clock ticks; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()  # after the name, which may hold anything
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
