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
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from shiftprotos import contract

from shiftruntime.engine.cgroups import Cgroups
from shiftruntime.engine.liveness import Life, Standstill, describe_state, holding_up, life_of, process_state
from shiftruntime.engine.memory import limit_mib
from shiftruntime.errors import RankError
from shiftruntime.parallel.arena import Arena, arena_bytes, create_memory, supported
from shiftruntime.worker.frames import FrameError, FrameSocket, pack
from shiftruntime.worker.messages import Done, Failed, FromRank, Hello, LoadProgress, StepPlan

R = TypeVar("R", bound=msgspec.Struct)

_TICK_SECONDS = 0.5
_MAX_GAP_SECONDS = 2.0  # an engine that could not look for longer was held up itself
# A rank may compute for long between two layers, but not for ever.
_BUSY_STALLS = 30
_EXIT_SECONDS = 3.0
_AHEAD_BYTES = 64 << 10  # surely fit in a channel that nobody reads, as that of a rank while it computes
_COMM_TIMEOUT_SECONDS = 600.0  # the engine's watchdog ends a stuck group long before; a slow peer is waited for


@dataclass
class _Step:
    """One that was begun and has not ended."""

    number: int
    gear: str
    frame: bytes
    sent: bool = False


class RankGroup:
    """P processes. A death, a failure or a standstill of one raises RankError and names it."""

    def __init__(self, ranks: int, selector: selectors.BaseSelector, stall_seconds: float) -> None:
        self.size = ranks
        self._selector = selector
        self._stall_seconds = stall_seconds
        self._oom_kills = Cgroups().oom_kills()
        self._arena_fd = create_memory("shift-arena", arena_bytes(ranks))
        self._arena = Arena(self._arena_fd, ranks)
        self.weights_fd = create_memory("shift-weights", 0)
        self._rendezvous = "" if supported() else tempfile.mkdtemp(prefix="shift-")
        self._inbox: list[list[FromRank]] = [[] for _ in range(ranks)]
        self._sockets: list[FrameSocket[FromRank]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.last_step = 0
        self._begun: deque[_Step] = deque()
        self.last_answer_seconds = time.monotonic()  # when all ranks were last known to live
        try:
            for rank in range(ranks):
                self._spawn(rank)
        except OSError as error:
            self.close()
            raise RankError(contract.REASON_RANK_FAILED, f"cannot start {ranks} rank processes: {error}") from error

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
            *("--threads", str(max(1, Cgroups().cores() // self.size))),
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
        self._send_frame(rank, pack(message), type(message).__name__)

    def _send_frame(self, rank: int, frame: bytes, what: str) -> None:
        try:
            self._sockets[rank].socket.sendall(frame)
        except TimeoutError as error:  # a stopped rank empties its channel no more
            raise self.stalled(rank, f"and takes no {what}", self._stall_seconds) from error
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
        """Run one step on all ranks: ``begin`` and ``end``."""
        self.begin(plan)
        return self.end()

    def begin(self, plan: StepPlan) -> None:
        """Let all ranks run a step, behind one that has not ended if there is one."""
        self.last_step = plan.step
        self._begun.append(_Step(plan.step, plan.gear, pack(plan)))
        if len(self._begun) == 1 or len(self._begun[-1].frame) <= _AHEAD_BYTES:
            self._send_step(self._begun[-1])

    def end(self) -> Done:
        """What came of the step begun first; other sockets of the selector are served meanwhile.

        The ranks for which the others wait must show life: a layer, a collective, or time on a core. Slow ones are
        waited for; one that shows none for ``stall_seconds`` fails the group.
        """
        step = self._begun[0]
        watch = _Watch(self, range(self.size), self._stall_seconds)
        while not all(self._inbox):
            self._pump(_TICK_SECONDS)
            watch.check(
                [rank for rank in range(self.size) if not self._inbox[rank]], f"in step {step.number} ({step.gear})"
            )
        self._begun.popleft()
        if self._begun and not self._begun[0].sent:
            self._send_step(self._begun[0])
        self.last_answer_seconds = time.monotonic()
        dones = [self._take(rank, Done) for rank in range(self.size)]
        for rank, done in enumerate(dones):
            if (done.step, done.tokens) != (step.number, dones[0].tokens):
                raise RankError(
                    contract.REASON_RANK_FAILED,
                    f"rank {rank} disagrees with rank 0 in step {step.number} ({step.gear}): "
                    f"step {done.step}, tokens {done.tokens[:8]} against {dones[0].tokens[:8]}",
                )
        return min(dones, key=lambda done: done.generation)

    def _send_step(self, step: _Step) -> None:
        step.sent = True
        for rank in range(self.size):
            self._send_frame(rank, step.frame, StepPlan.__name__)

    def serve(self, timeout_seconds: float) -> None:
        """Handle what arrives while the ranks have nothing to do; raises RankError."""
        self._pump(timeout_seconds)

    def collect(
        self,
        answer: type[R],
        ranks: range | list[int],
        timeout_seconds: float,
        what: str,
        on_progress: Callable[[LoadProgress], None] = lambda _: None,
    ) -> list[R]:
        """One answer of each rank within the deadline; one that stands still is named long before."""
        watch = _Watch(self, ranks, self._stall_seconds, starting=True)
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
            watch.check(
                [rank for rank in ranks if rank not in answers and not self._inbox[rank]], f"before {what} was done"
            )
        self.last_answer_seconds = time.monotonic()
        return [answers[rank] for rank in ranks]

    def close(self, failed: bool = False) -> None:
        """End all ranks: politely, then by force; a group that has failed by force at once."""
        if failed:
            for process in self._processes:
                process.kill()
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
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel; it dies with its parent at the latest
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
        if code == -signal.SIGKILL and Cgroups().oom_kills() > self._oom_kills:
            message = f"the kernel killed rank {rank} for lack of memory; the limit is {limit_mib()}, raise it"
            return RankError(contract.REASON_OUT_OF_MEMORY, message)
        if code == -signal.SIGKILL:
            message = f"rank {rank} was killed (SIGKILL), often for lack of memory"
            return RankError(contract.REASON_RANK_FAILED, message)
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        step = self._begun[0].number if self._begun else self.last_step
        return RankError(contract.REASON_RANK_FAILED, f"rank {rank} ended with {how} at step {step}")

    def pid(self, rank: int) -> int:
        return self._processes[rank].pid

    def counters(self, rank: int) -> Life:
        """Grow with every layer and collective."""
        return (self.progress()[rank], *self._arena.position(rank))

    def positions(self) -> list[tuple[int, int]] | None:
        """Where each rank is in the sequence of collectives; None when they do not go through our memory."""
        return [self._arena.position(rank) for rank in range(self.size)] if supported() else None

    def stalled(self, rank: int, where: str, seconds: float) -> RankError:
        return RankError(
            contract.REASON_RANK_FAILED,
            f"rank {rank} made no progress for {seconds:g} s {where}{describe_state(self.pid(rank))}; "
            f"progress of the ranks: {self.progress()}",
        )


class _Watch:
    """Looks at the ranks from time to time while the engine waits for them.

    ``starting``: nothing counts layers yet, and a rank that the kernel holds up in reading the model counts as alive.
    """

    def __init__(self, group: RankGroup, ranks: Collection[int], limit_seconds: float, starting: bool = False) -> None:
        self._group = group
        self._limit_seconds = limit_seconds
        self._starting = starting
        self._ranks = tuple(ranks)
        self._next_look = time.monotonic() + _TICK_SECONDS
        self._watches: list[tuple[Standstill, float]] = []

    def check(self, unfinished: list[int], where: str) -> None:
        """Raises RankError naming the unfinished rank that holds up the others; cheap until a look is due."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _TICK_SECONDS
        if not self._watches:  # most steps end before the first look, and should pay for none
            self._watches.append((Standstill(self._life, self._ranks, now, _MAX_GAP_SECONDS), self._limit_seconds))
            if not self._starting:
                counters = Standstill(self._group.counters, self._ranks, now, _MAX_GAP_SECONDS)
                self._watches.append((counters, _BUSY_STALLS * self._limit_seconds))
        positions = self._group.positions()
        for watch, limit in self._watches:
            still = watch.update(now)
            guilty = holding_up({rank: still[rank] for rank in unfinished}, limit, positions)
            if guilty is not None:
                raise self._group.stalled(guilty, where, limit)

    def _life(self, rank: int) -> Life:
        pid = self._group.pid(rank)
        life = (*self._group.counters(rank), *life_of(pid))
        if self._starting and process_state(pid) == "D":
            return (*life, time.monotonic_ns())
        return life
