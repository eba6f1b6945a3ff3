"""From a batch of the scheduler to what the ranks are told, without knowing any rank."""

from __future__ import annotations

from collections.abc import Mapping

from shiftcore.scheduler import Batch, Chunk

from shiftruntime.engine.messages import Sampling
from shiftruntime.worker.messages import ChunkPlan, Sample


def plan_chunks(batch: Batch, samplings: Mapping[str, Sampling], block_size: int) -> tuple[ChunkPlan, ...]:
    """One plan per chunk, in batch order; ``samplings`` by request id."""
    return tuple(plan_chunk(chunk, samplings[chunk.request.id], block_size) for chunk in batch)


def plan_chunk(chunk: Chunk, sampling: Sampling, block_size: int) -> ChunkPlan:
    """The chunk's tokens with the blocks that hold the sequence up to its end."""
    request, end = chunk.request, chunk.start + chunk.length
    s = sampling
    sample = Sample(s.temperature, s.top_p, s.seed, end, s.logprobs) if chunk.samples else None
    blocks = tuple(request.blocks[: -(-end // block_size)])
    return ChunkPlan(tuple(request.tokens[chunk.start : end]), chunk.start, blocks, sample)
