"""P real ranks in one process, with a look at what a rank hides: its logits and its cache."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import msgspec
import torch
from helpers.gear_fuzz.tiny import LoadedWeights
from helpers.local_comm import Board, LocalComm
from shiftcore.layout import Gear
from shiftruntime.config import ModelConfig
from shiftruntime.models.decoder import Decoder, StepBatch
from shiftruntime.models.kv_cache import KvCache
from shiftruntime.parallel.comm import Comm
from shiftruntime.worker import rank as worker_rank
from shiftruntime.worker.messages import Allocated, AllocateKv, Attach, Attached, ChunkPlan, Done, StepPlan
from shiftruntime.worker.rank import Rank
from torch import Tensor

_TURN_SECONDS = 60.0

WrapComm = Callable[[Comm], Any]  # a Comm, or what stands for one
AlterDecoder = Callable[[Decoder], None]


@dataclass(frozen=True)
class LogitRows:
    """Of one step: row i of ``logits`` belongs to token ``tokens[i]`` of the step."""

    tokens: list[int]
    logits: Tensor  # [m, vocabulary]


@dataclass(frozen=True)
class CachedHeads:
    """What one rank holds of one sequence, by layer: positions, keys and values [positions, kv heads, head_dim]."""

    layers: list[tuple[Tensor, Tensor, Tensor]]


def layer_windows(config: ModelConfig) -> tuple[int | None, ...]:
    """Attention window per layer group."""
    return tuple(group.window for group in config.layer_groups)


class TurnBoard(Board):
    """Lets one rank compute at a time, in rank order until it must wait for others.

    Threads that compete for the interpreter spend more time on that than on tiny tensors. And ranks that wait for
    different collectives are found at once, since then nobody can go on.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__(ranks, _TURN_SECONDS)
        self._turns = [_closed() for _ in range(ranks)]
        self._ready: deque[int] = deque()
        self._arrived: dict[tuple[int, ...], list[int]] = {}
        self._rank_of: dict[int, int] = {}  # by thread
        self._over = _closed()
        self._working = 0
        self.failure: str | None = None

    def enter(self, rank: int) -> None:
        self._rank_of[threading.get_ident()] = rank

    def start(self) -> None:
        """Let all ranks run one job each, and wait until they are done or one of them failed."""
        self._working = self.ranks
        self._ready.extend(range(self.ranks))
        self._pass_on()
        if not self._over.acquire(timeout=_TURN_SECONDS):
            self.failure = f"the ranks did not end a step within {_TURN_SECONDS:g} s"

    def await_job(self, rank: int) -> None:
        self._turns[rank].acquire()

    def leave(self) -> None:
        """A rank has ended its job."""
        self._working -= 1
        if self._working:
            self._pass_on()
        else:
            self._over.release()

    def fail(self, text: str) -> None:
        self.failure = self.failure or text
        if self._over.locked():
            self._over.release()

    def release_all(self) -> None:
        for turn in self._turns:
            if turn.locked():
                turn.release()

    def wait(self, group: tuple[int, ...]) -> None:
        key = tuple(sorted(group))
        arrived = self._arrived.setdefault(key, [])
        rank = self._rank_of[threading.get_ident()]
        arrived.append(rank)
        if len(arrived) == len(group):
            del self._arrived[key]
            self._ready.extend(arrived[:-1])
            return
        self._pass_on()
        self._turns[rank].acquire()
        if self.failure:
            raise threading.BrokenBarrierError(self.failure)

    def _pass_on(self) -> None:
        if self._ready:
            self._turns[self._ready.popleft()].release()
        else:
            self.fail(f"ranks wait for collectives that cannot happen: {self._arrived}")


def _closed() -> threading.Lock:
    """A lock as a door that one thread waits at and another opens."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class LogicalRanks:
    """``run`` is what engine.ranks.RankGroup.run is for processes; steps are numbered as the engine does."""

    def __init__(
        self, weights: LoadedWeights, size: int, block_size: int, num_blocks: int,
        wrap_comm: WrapComm = lambda comm: comm, alter: AlterDecoder = lambda decoder: None, *, exact: bool = True,
    ) -> None:  # fmt: skip
        self.size = size
        self.config = weights.config
        self._board = TurnBoard(size)
        self._answers: list[list[msgspec.Struct]] = [[] for _ in range(size)]
        self._ranks: list[Rank] = []
        self._logits: list[tuple[StepBatch, Tensor] | None] = [None] * size
        self._plan: StepPlan | None = None
        self._last_step = 0
        attach = Attach(weights.config, weights.dtype, exact, weights.num_bytes, block_size)
        for number in range(size):
            comm = wrap_comm(LocalComm(self._board, number))
            rank = Rank(number, size, weights.fd, comm, self._answers[number].append)
            rank.attach(attach)
            rank.allocate(AllocateKv(num_blocks))
            alter(_decoder_of(rank))
            self._record(number, _decoder_of(rank))
            self._ranks.append(rank)
        for answers in self._answers:
            assert [type(answer) for answer in answers] == [Attached, Allocated]
            answers.clear()
        self._threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(size)]
        for thread in self._threads:
            thread.start()

    def cached(self, tables: Sequence[Sequence[int]], tokens: int) -> list[CachedHeads]:
        """What the ranks hold of a sequence with these tables (one per layer group), by rank."""
        return [self._cached(cache, tables, tokens) for cache in self._caches]

    @property
    def _caches(self) -> list[KvCache]:
        return [_decoder_of(rank).kv for rank in self._ranks]

    def _cached(self, cache: KvCache, tables: Sequence[Sequence[int]], tokens: int) -> CachedHeads:
        positions = torch.arange(tokens)
        layers = []
        for i in range(self.config.num_layers):
            blocks = torch.tensor(tables[self._group_of(i)], dtype=torch.int64)[positions // cache.block_size]
            held = positions[blocks >= 0]
            slots = blocks[held] * cache.block_size + held % cache.block_size
            keys, values = cache.layer(i)
            layers.append((held, keys[slots], values[slots]))
        return CachedHeads(layers)

    def _group_of(self, layer: int) -> int:
        return next(i for i, group in enumerate(self.config.layer_groups) if layer in group.layers)

    def run(self, gear: Gear, chunks: Sequence[ChunkPlan]) -> Done:
        """One step on all ranks; raises what a rank raises, and RuntimeError when they disagree."""
        self._last_step += 1
        self._plan = StepPlan(self._last_step, gear.name, 0, tuple(chunks))
        self._logits = [None] * self.size
        self._board.start()
        if self._board.failure:
            raise RuntimeError(self._board.failure)
        dones = [answers.pop() for answers in self._answers]
        for rank, done in enumerate(dones):
            # Compared as bytes: a log probability that nobody wants is not a number.
            if msgspec.msgpack.encode(done) != msgspec.msgpack.encode(dones[0]):
                raise RuntimeError(f"rank {rank} answers {done}, rank 0 {dones[0]}")
        assert isinstance(dones[0], Done)
        return dones[0]

    def logits(self) -> LogitRows | None:
        """Of the last step, all vocabulary shards side by side; None if they were made in pieces (logits_at_once)."""
        recorded = [entry for entry in self._logits if entry is not None]
        if not recorded:
            return None
        batch = recorded[0][0]
        whole = torch.cat([logits for _, logits in recorded], dim=1)[:, : self.config.vocab_size]
        return LogitRows(batch.logit_rows.tolist(), whole)

    def poison(self, blocks: Sequence[int]) -> None:
        """Write what nobody can have computed: who reads such a block gets other logits."""
        if not blocks:
            return
        for number, cache in enumerate(self._caches):
            for layer in (cache.k, cache.v):
                layer[:, list(blocks)] = 1000.0 + number

    def close(self) -> None:
        self._plan = None
        self._board.failure = self._board.failure or "closed"
        self._board.release_all()
        for thread in self._threads:
            thread.join(_TURN_SECONDS)

    def _record(self, number: int, decoder: Decoder) -> None:
        forward = decoder.forward

        def recording(batch: StepBatch) -> Tensor:
            logits = forward(batch)
            self._logits[number] = (batch, logits.clone())
            return logits

        decoder.forward = recording  # type: ignore[method-assign]

    def _serve(self, number: int) -> None:
        self._board.enter(number)
        while True:
            self._board.await_job(number)
            plan = self._plan
            if plan is None:
                return
            try:
                self._ranks[number].step(plan)
            except threading.BrokenBarrierError:
                return
            except Exception as error:  # noqa: BLE001 - carried to who runs the step
                self._board.fail(f"rank {number}: {type(error).__name__}: {error}")
                return
            self._board.leave()


def _decoder_of(rank: Rank) -> Decoder:
    decoder = rank._decoder
    assert decoder is not None, "the rank has no cache yet"
    return decoder


@contextmanager
def logits_at_once(elements: int) -> Iterator[None]:
    """How many logits a rank holds at once; a step with more makes them in pieces."""
    with mock.patch.object(worker_rank, "LOGITS_AT_ONCE", elements):
        yield


@contextmanager
def logical_ranks(
    weights: LoadedWeights, size: int, block_size: int, num_blocks: int,
    wrap_comm: WrapComm = lambda comm: comm, alter: AlterDecoder = lambda decoder: None, *, exact: bool = True,
) -> Iterator[LogicalRanks]:  # fmt: skip
    ranks = LogicalRanks(weights, size, block_size, num_blocks, wrap_comm, alter, exact=exact)
    try:
        yield ranks
    finally:
        ranks.close()
