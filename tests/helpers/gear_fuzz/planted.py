"""Bugs put in on purpose, each of a kind that a shift-parallel runtime can have: the fuzz must catch every one.

None of them crashes by itself: most are what a wrong line would do, put into one gear or one moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch
from helpers.gear_fuzz.check import Wiring
from helpers.gear_fuzz.drive import Parts
from shiftcore.block_tables import SequenceBlocks
from shiftcore.layout import Gear, shard
from shiftcore.prefix_cache import PrefixChain, Tokens
from shiftcore.scheduler import Batch, Request, Scheduler
from shiftruntime.engine.plans import plan_chunks
from shiftruntime.engine.samples import History
from shiftruntime.kernels.plain import PlainOps
from shiftruntime.layers.exchange import HeadPlan
from shiftruntime.models.decoder import Decoder, StepBatch
from shiftruntime.models.kv_cache import KvCache
from shiftruntime.models.weights import LayerWeights
from shiftruntime.parallel.comm import Comm, Group
from shiftruntime.worker.messages import ChunkPlan
from torch import Tensor


@dataclass(frozen=True)
class Bug:
    name: str
    story: str
    wiring: Wiring
    ranks: int = 4  # where it can show
    family: str | None = None


class CommProxy:
    """A Comm that passes everything on."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm

    def __getattr__(self, name: str) -> object:
        return getattr(self._comm, name)


class SwappedRanks(CommProxy):
    def all_to_all(self, x: Tensor, group: Group) -> Tensor:
        received = self._comm.all_to_all(x, group)
        return received if len(group) == 1 else torch.cat((received[1:2], received[:1], received[2:]))


class ReversedSums(CommProxy):
    def all_gather(self, x: Tensor, group: Group) -> Tensor:
        gathered = self._comm.all_gather(x, group)
        return gathered.flip(0) if x.dim() == 3 else gathered  # leaves of a sum: [leaves, rows, N]


class RelabelledRanks(CommProxy):
    """Ranks under other numbers: ``physical[i]`` is called i."""

    def __init__(self, comm: Comm, physical: tuple[int, ...]) -> None:
        super().__init__(comm)
        self._physical = physical
        self.rank = physical.index(comm.rank)

    def all_gather(self, x: Tensor, group: Group) -> Tensor:
        return self._comm.all_gather(x, tuple(self._physical[i] for i in group))

    def all_to_all(self, x: Tensor, group: Group) -> Tensor:
        return self._comm.all_to_all(x, tuple(self._physical[i] for i in group))


def strided_groups(decoder: Decoder) -> None:
    """In mixed gears tensor groups are neighbours: right in itself, but the rank has other heads than in its cache."""
    others: dict[Gear, Decoder] = {}
    forward, head = decoder.forward, decoder._logits

    def other(gear: Gear) -> Decoder:
        physical = tuple(t + s * gear.tensor for t in range(gear.tensor) for s in range(gear.sequence))
        comm: Any = RelabelledRanks(decoder.comm, physical)
        made = Decoder(decoder.config, decoder._weights, comm, decoder.ops, decoder.kv)
        made._logits = head  # type: ignore[method-assign]
        return made

    def shifted(batch: StepBatch) -> Tensor:
        gear = batch.gear
        if 1 in (gear.sequence, gear.tensor):
            return forward(batch)
        if gear not in others:
            others[gear] = other(gear)
        return others[gear].forward(batch)

    decoder.forward = shifted  # type: ignore[method-assign]


def wrong_kv_head(decoder: Decoder) -> None:
    """Replicated kv heads are dealt out in turn (s mod kv heads) instead of in runs."""
    views = decoder._views

    def dealt(gear: Gear) -> tuple[HeadPlan, tuple[LayerWeights, ...]]:
        heads, layers = views(gear)
        members, per_rank = heads.sent_kv.shape
        if per_rank == 1 and len(heads.kv) > 1:
            turns = (torch.arange(members) % len(heads.kv))[:, None]
            heads = replace(heads, sent_kv=turns)
        return heads, layers

    decoder._views = dealt  # type: ignore[method-assign]


def cache_per_gear(decoder: Decoder) -> None:
    """The tp gear was built with a cache of its own."""
    caches = (decoder.kv, KvCache(torch.zeros_like(decoder.kv.k), torch.zeros_like(decoder.kv.v), decoder.kv.groups))
    forward = decoder.forward

    def bound(batch: StepBatch) -> Tensor:
        decoder.kv = caches[batch.gear.sequence == 1]
        return forward(batch)

    decoder.forward = bound  # type: ignore[method-assign]


def permuted_vocabulary(decoder: Decoder) -> None:
    """In sequence gears the LM head is cut in the order of (t, s), and its logits are put together in rank order."""
    forward, right, head = decoder.forward, decoder._lm_head, decoder._weights.get("lm_head", decoder._weights["embed"])

    def permuted(batch: StepBatch) -> Tensor:
        gear, rank = batch.gear, decoder.comm.rank
        part = gear.sequence_index(rank) * gear.tensor + gear.tensor_index(rank)
        rows = shard(head.shape[0], gear.ranks, part, "vocabulary")
        decoder._lm_head = head[rows.start : rows.stop]
        try:
            return forward(batch)
        finally:
            decoder._lm_head = right

    decoder.forward = permuted  # type: ignore[method-assign]


def pad_off_by_one(decoder: Decoder) -> None:
    """A padded step takes logits one row early."""
    needed = decoder._needed_rows

    def early(x: Tensor, batch: StepBatch, rows: slice) -> Tensor:
        if len(batch.token_ids) % batch.gear.sequence:
            batch = replace(batch, logit_rows=(batch.logit_rows - 1).clamp(min=0))
        return needed(x, batch, rows)

    decoder._needed_rows = early  # type: ignore[method-assign]


def fast_sequence_gears(decoder: Decoder) -> None:
    """Sequence gears use the fast arithmetic: right but for the last bits."""
    forward, exact, plain = decoder.forward, decoder.ops, PlainOps()

    def chosen(batch: StepBatch) -> Tensor:
        decoder.ops = exact if batch.gear.sequence == 1 else plain
        try:
            return forward(batch)
        finally:
            decoder.ops = exact

    decoder.forward = chosen  # type: ignore[method-assign]


def stale_tables() -> Parts:
    def plan(batch: Batch, *rest: Any) -> tuple[ChunkPlan, ...]:
        plans = []
        for chunk, right in zip(batch, plan_chunks(batch, *rest), strict=True):
            known = getattr(chunk.request, "remembered_blocks", ())
            blocks = (*known, *right.blocks[len(known) :])
            chunk.request.remembered_blocks = blocks  # type: ignore[attr-defined]
            plans.append(msgspec.structs.replace(right, blocks=blocks))
        return tuple(plans)

    return Parts(plan=plan)


def noise_by_place(batch: Batch, *rest: Any) -> tuple[ChunkPlan, ...]:
    """The noise of a token depends on its place in the batch instead of its position."""
    return tuple(
        plan if plan.sample is None else _with_position(plan, place)
        for place, plan in enumerate(plan_chunks(batch, *rest))
    )


def _with_position(plan: ChunkPlan, position: int) -> ChunkPlan:
    assert plan.sample is not None, "a row that is sampled"
    return msgspec.structs.replace(plan, sample=msgspec.structs.replace(plan.sample, position=position))


def forgotten_penalties(
    batch: Batch, samplings: Any, block_size: int, _histories: Any, before: Batch
) -> tuple[ChunkPlan, ...]:
    """The history of a request begins anew with every step it computes: penalties forget the output."""
    fresh = {chunk.request.id: History(samplings[chunk.request.id], chunk.request.prompt) for chunk in batch}
    return plan_chunks(batch, samplings, block_size, fresh, before)


def neighbours_tokens(batch: Batch, *rest: Any) -> tuple[ChunkPlan, ...]:
    """A step ahead goes on with the token that the step before drew for the next request."""
    *_, before = rest
    draws = max(1, sum(chunk.samples for chunk in before))
    return tuple(
        plan if plan.drawn is None else msgspec.structs.replace(plan, drawn=(plan.drawn + 1) % draws)
        for plan in plan_chunks(batch, *rest)
    )


class SwappedVisitors(CommProxy):
    """Rows that come back from the experts of other ranks are in the wrong order."""

    def all_to_all_v(self, x: Tensor, counts: Sequence[int]) -> Any:
        rows, received = self._comm.all_to_all_v(x, counts)
        return rows.flip(0) if rows.dtype is not torch.uint8 else rows, received


class EarlyRelease(Scheduler):
    """The blocks of a request that ends in flight are free at once."""

    def _end(self, request: Request) -> None:
        in_flight = request.in_flight
        super()._end(request)
        if in_flight and request.sequence is not None:
            self._in_flight = tuple(chunk for chunk in self._in_flight if chunk.request is not request)
            self._ahead = tuple(chunk for chunk in self._ahead if chunk.request is not request)
            self._leave(request)

    def complete(self, sampled: dict[str, int]) -> list:  # type: ignore[type-arg]
        self._in_flight = tuple(chunk for chunk in self._in_flight if not chunk.request.ended)
        return super().complete(sampled)


class ForgottenRecompute(Scheduler):
    """A preempted request gets new blocks and goes on where it was."""

    def _preempt(self, request: Request, *rest: object) -> None:
        computed = request.computed
        super()._preempt(request, *rest)  # type: ignore[arg-type]
        request.scheduled = request.computed = computed

    def _take(self, request: Request, hit: object, now: float) -> None:
        computed = request.computed
        super()._take(request, hit, now)  # type: ignore[arg-type]
        request.scheduled = request.computed = max(computed, request.computed)


class EagerWindow(Scheduler):
    """Sliding layers give back a block that the next token still sees."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        first_seen = self._tables._first_seen

        def eager(window: int | None, position: int) -> int:
            return min(first_seen(window, position) + (window is not None), position // self.pool.block_size)

        self._tables._first_seen = eager  # type: ignore[method-assign]


class BlindChain(PrefixChain):
    """A block's name says its tenant and its own tokens, not what came before them."""

    def digests(self, tokens: Tokens, num_blocks: int) -> list[bytes]:
        size = self._block_size
        return [self._root + repr(tokens[i * size : (i + 1) * size]).encode() for i in range(num_blocks)]


class BlindPrefix(Scheduler):
    def add(self, request: Request) -> None:
        super().add(request)
        chain = BlindChain(request.tenant, self.pool.block_size)
        request.sequence = SequenceBlocks(tuple([] for _ in request.tables), chain)


class SharedTenants(Scheduler):
    """The tenant is no part of a block's name."""

    def add(self, request: Request) -> None:
        super().add(request)
        request.sequence = self._tables.new("")


def _scheduler(kind: type[Scheduler]) -> Wiring:
    return Wiring(parts=Parts(scheduler=kind))


BUGS = (
    Bug("swapped-ranks", "two members of an all-to-all are swapped", Wiring(wrap_comm=SwappedRanks), 2),
    Bug("head-order", "mixed gears number ranks tensor first", Wiring(alter_decoder=strided_groups), 4),
    Bug("wrong-kv-head", "a replicated kv head goes to the wrong members", Wiring(alter_decoder=wrong_kv_head), 4),
    Bug("unbound-cache", "the tp gear has a cache of its own", Wiring(alter_decoder=cache_per_gear), 3),
    Bug("vocabulary", "vocabulary shards in another order", Wiring(alter_decoder=permuted_vocabulary), 6),
    Bug("pad", "off by one in a padded step", Wiring(alter_decoder=pad_off_by_one), 4),
    Bug("stale-table", "the table from before a preemption", Wiring(parts=stale_tables()), 2),
    Bug("no-recompute", "a preempted request goes on without its KV", _scheduler(ForgottenRecompute), 3),
    Bug("early-release", "blocks reused while the step in flight reads them", _scheduler(EarlyRelease), 2),
    Bug("wrong-prefix", "a prefix hit by a block's own tokens alone", _scheduler(BlindPrefix), 2),
    Bug("tenants", "a prefix hit across tenants", _scheduler(SharedTenants), 2),
    Bug("window", "a sliding window gives back a block too early", _scheduler(EagerWindow), 2, "mistral"),
    Bug("noise", "noise depends on the place in the batch", Wiring(parts=Parts(plan=noise_by_place)), 2),
    Bug("history", "penalties forget the output", Wiring(parts=Parts(plan=forgotten_penalties)), 2),
    Bug("wrong-place", "a step ahead goes on with a neighbour's token", Wiring(parts=Parts(plan=neighbours_tokens)), 2),
    Bug("experts", "rows come back from experts in another order", Wiring(wrap_comm=SwappedVisitors), 4, "mixtral"),
    Bug("sum-order", "tensor sums in another order, last bits only", Wiring(wrap_comm=ReversedSums), 8),
    Bug("fast-gear", "one gear uses other arithmetic, last bits only", Wiring(alter_decoder=fast_sequence_gears), 2),
)
