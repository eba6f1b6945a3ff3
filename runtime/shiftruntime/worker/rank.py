"""What one rank does with each message of the engine."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from itertools import accumulate

import msgspec
import torch
from shiftcore.layout import Gear
from shiftprotos import contract

from shiftruntime.errors import RankError, StartupError
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.ops import Ops
from shiftruntime.kernels.plain import PlainOps
from shiftruntime.kernels.probe import choose_dtype
from shiftruntime.models.decoder import Chunk, Decoder, StepBatch
from shiftruntime.models.kv_cache import allocate_kv, kv_block_bytes
from shiftruntime.models.sampling import Sampled, sample, token_logprobs
from shiftruntime.models.source import ModelSource, open_model
from shiftruntime.models.weights import fill, plan_arena, view
from shiftruntime.parallel.comm import Comm
from shiftruntime.worker.messages import (
    LOGITS_AT_ONCE,
    Allocated,
    AllocateKv,
    Attach,
    Attached,
    ChunkPlan,
    Done,
    Load,
    Loaded,
    LoadProgress,
    Open,
    Opened,
    Sample,
    StepPlan,
)

_PROGRESS_EVERY_BYTES = 64 << 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

Send = Callable[[msgspec.Struct], None]


class Rank:
    """One rank's state: the opened model, then the decoder, then the KV cache."""

    def __init__(self, rank: int, size: int, weights_fd: int, comm: Comm, send: Send) -> None:
        self.rank, self.size = rank, size
        self._weights_fd = weights_fd
        self._comm = comm
        self._send = send
        self._source: ModelSource | None = None
        self._decoder: Decoder | None = None
        self._attach: Attach | None = None
        self._weights: dict[str, torch.Tensor] = {}
        self._next_step = 1
        self._drawn: tuple[int, ...] = ()  # by the step before: the engine may name a token by its place there

    def open(self, message: Open) -> None:
        self._source = open_model(message.model, message.quantisation)
        config = self._source.config
        config.check_layout(self.size)
        dtype = _choose(message.dtype, message.exact)
        layout = plan_arena(config, dtype, self.size)
        self._send(Opened(config, str(dtype).removeprefix("torch."), layout.total_bytes))
        self._dtype = dtype

    def load(self, message: Load) -> None:
        assert self._source is not None, "Load before Open"
        layout = plan_arena(self._source.config, self._dtype, self.size)
        reported = 0

        def progress(done: int, total: int) -> None:
            nonlocal reported
            if done - reported >= _PROGRESS_EVERY_BYTES or done == total:
                reported = done
                self._send(LoadProgress(done, total))

        fill(self._source, layout, self._map_weights(message.weights_bytes), progress)
        self._source = None  # its buffers are not needed any more
        self._send(Loaded())

    def attach(self, message: Attach) -> None:
        layout = plan_arena(message.config, DTYPES[message.dtype], self.size)
        self._weights = view(layout, self._map_weights(message.weights_bytes))
        self._attach = message
        config, dtype = message.config, _kv_dtype(message)
        self._send(Attached(kv_block_bytes(config, self.size, message.block_size, dtype, config.layer_groups)))

    def allocate(self, message: AllocateKv) -> None:
        attach = self._attach
        assert attach is not None, "AllocateKv before Attach"
        self._decoder = None  # give the old cache back first
        config, dtype = attach.config, _kv_dtype(attach)
        kv = allocate_kv(config, self.size, message.num_blocks, attach.block_size, dtype, config.layer_groups)
        ops: Ops = ExactOps() if attach.exact else PlainOps()
        self._decoder = Decoder(config, self._weights, self._comm, ops, kv)
        self._send(Allocated())

    def step(self, plan: StepPlan) -> None:
        if plan.step != self._next_step:
            raise RankError(
                contract.REASON_RANK_FAILED, f"rank {self.rank} expected step {self._next_step}, got {plan.step}"
            )
        self._next_step += 1
        plan = with_drawn(plan, self._drawn)
        done = self._run(plan) if plan.chunks else Done(plan.step, plan.generation)
        self._drawn = done.tokens
        self._send(done)

    def _run(self, plan: StepPlan) -> Done:
        assert self._decoder is not None, "a step before AllocateKv"
        decoder = self._decoder
        logits = _logits_of(decoder, step_batch(plan))
        place = 0
        sampled: list[int] = []  # rows from which a token is drawn
        samples: list[Sample] = []
        scored: list[int] = []
        targets: list[int] = []
        for chunk in plan.chunks:
            rows = range(place, place + len(_logit_rows(chunk)))
            place = rows.stop
            scored += rows[: len(chunk.targets)]
            targets += chunk.targets
            if chunk.sample is not None:
                sampled.append(rows[-1])
                samples.append(chunk.sample)
        done = Done(plan.step, plan.generation)
        if samples:
            done = _with_tokens(done, sample(logits(sampled), samples, self._comm, decoder.ops))
        if targets:
            values: list[float] = []
            step = max(1, LOGITS_AT_ONCE // decoder.shard_width)
            for first in range(0, len(targets), step):
                some = logits(scored[first : first + step]), torch.tensor(targets[first : first + step])
                values += token_logprobs(*some, self._comm, decoder.ops).tolist()
            done = msgspec.structs.replace(done, target_logprobs=tuple(values))
        return done

    def _map_weights(self, size_bytes: int) -> mmap.mmap:
        return mmap.mmap(self._weights_fd, size_bytes)


def with_drawn(plan: StepPlan, drawn: tuple[int, ...]) -> StepPlan:
    """The plan with the tokens that it names by their place in the step before; raises RankError without one."""
    if all(chunk.drawn is None for chunk in plan.chunks):
        return plan

    def known(chunk: ChunkPlan) -> ChunkPlan:
        if chunk.drawn is None:
            return chunk
        if not 0 <= chunk.drawn < len(drawn):
            text = f"step {plan.step} goes on with token {chunk.drawn} of the step before, which drew {len(drawn)}"
            raise RankError(contract.REASON_RANK_FAILED, text)
        return msgspec.structs.replace(chunk, tokens=(drawn[chunk.drawn],), drawn=None)

    return msgspec.structs.replace(plan, chunks=tuple(map(known, plan.chunks)))


def step_batch(plan: StepPlan) -> StepBatch:
    """The tensors of a plan: its tokens in order, and the rows whose logits somebody needs."""
    lengths = [len(chunk.tokens) for chunk in plan.chunks]
    firsts = [0, *accumulate(lengths)]
    logit_rows = [row for chunk, first in zip(plan.chunks, firsts, strict=False) for row in _logit_rows(chunk, first)]
    return StepBatch(
        gear=Gear.parse(plan.gear),
        token_ids=torch.tensor([token for chunk in plan.chunks for token in chunk.tokens]),
        positions=torch.cat([torch.arange(c.start, c.start + len(c.tokens)) for c in plan.chunks]),
        chunks=tuple(
            Chunk(first, length, chunk.start, chunk.blocks, chunk.other_blocks)
            for chunk, first, length in zip(plan.chunks, firsts, lengths, strict=False)
        ),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
    )


def _logits_of(decoder: Decoder, batch: StepBatch) -> Callable[[list[int]], torch.Tensor]:
    """Logits of some of the logit rows, in order, [rows, padded vocabulary / P]; if many, made when asked for."""
    if len(batch.logit_rows) * decoder.shard_width <= LOGITS_AT_ONCE:
        whole = decoder.forward(batch)
        return lambda rows: whole if len(rows) == len(whole) else whole[rows]  # a decode step copies nothing
    hidden = decoder.hidden(batch)
    return lambda rows: decoder.logits(hidden[rows])


def _logit_rows(chunk: ChunkPlan, first: int = 0) -> list[int]:
    """Rows of a chunk that need logits: one per target, and the last one to sample from."""
    rows = list(range(first, first + len(chunk.targets)))
    return rows if chunk.sample is None or len(rows) == len(chunk.tokens) else [*rows, first + len(chunk.tokens) - 1]


def _with_tokens(done: Done, sampled: Sampled) -> Done:
    return msgspec.structs.replace(
        done,
        tokens=tuple(sampled.tokens.tolist()),
        logprobs=tuple(sampled.logprobs.tolist()),
        likeliest=sampled.likeliest if any(ids for ids, _ in sampled.likeliest) else (),
    )


def _kv_dtype(attach: Attach) -> torch.dtype:
    return DTYPES[attach.dtype if attach.kv_dtype == "auto" else attach.kv_dtype]


def _choose(name: str, exact: bool) -> torch.dtype:
    if name == "auto":
        return torch.float32 if exact else choose_dtype("cpu")
    if exact and name == "bfloat16":
        raise StartupError(contract.REASON_INVALID_ARGUMENT, "exact mode needs float32 or float64, got bfloat16")
    return DTYPES[name]
