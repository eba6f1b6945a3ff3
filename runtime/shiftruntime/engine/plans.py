"""From a batch of the scheduler to what the ranks are told, without knowing any rank."""

from __future__ import annotations

from collections.abc import Mapping

from shiftcore.scheduler import Batch, Chunk

from shiftruntime.engine.messages import Sampling
from shiftruntime.engine.samples import History
from shiftruntime.worker.messages import ChunkPlan


def plan_chunks(
    batch: Batch, samplings: Mapping[str, Sampling], block_size: int, histories: Mapping[str, History] | None = None
) -> tuple[ChunkPlan, ...]:
    """One plan per chunk, in batch order; ``samplings`` and kept ``histories`` by request id."""
    kept = histories or {}
    return tuple(
        plan_chunk(chunk, samplings[chunk.request.id], block_size, kept.get(chunk.request.id)) for chunk in batch
    )


def plan_chunk(chunk: Chunk, sampling: Sampling, block_size: int, history: History | None = None) -> ChunkPlan:
    """The chunk's tokens with the blocks that hold the sequence up to its end; a history that is not kept is made."""
    request, end = chunk.request, chunk.start + chunk.length
    history = history or History(sampling, request.prompt, request.tokens[len(request.prompt) :])
    blocks, *others = (tuple(table[: -(-end // block_size)]) for table in request.tables)
    return ChunkPlan(
        tuple(request.tokens[chunk.start : end]),
        chunk.start,
        blocks,
        history.sample(end) if chunk.samples else None,
        history.targets(request.prompt, chunk.start, end),
        tuple(others),
    )
