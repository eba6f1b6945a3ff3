"""From a batch of the scheduler to what the ranks are told, without knowing any rank."""

from __future__ import annotations

from collections.abc import Mapping

from shiftcore.scheduler import Batch, Chunk

from shiftruntime.engine.messages import Sampling
from shiftruntime.engine.samples import History
from shiftruntime.worker.messages import UNKNOWN, ChunkPlan


def plan_chunks(
    batch: Batch,
    samplings: Mapping[str, Sampling],
    block_size: int,
    histories: Mapping[str, History] | None = None,
    before: Batch = (),
) -> tuple[ChunkPlan, ...]:
    """One plan per chunk, in batch order; ``samplings`` and kept ``histories`` by request id.

    ``before``: the batch of the step before, if that is in flight.
    """
    kept = histories or {}
    samplers = (chunk.request for chunk in before if chunk.samples)
    drawn = {request: place for place, request in enumerate(samplers)}
    return tuple(
        plan_chunk(
            chunk,
            samplings[chunk.request.id],
            block_size,
            kept.get(chunk.request.id),
            drawn[chunk.request] if chunk.follows else None,
        )
        for chunk in batch
    )


def may_run_ahead(batch: Batch, histories: Mapping[str, History]) -> bool:
    """Whether a step can be planned behind this one: its tokens decide nothing that the engine must tell the ranks."""
    going_on = (chunk.request for chunk in batch if chunk.samples and chunk.request.missing)
    return all(histories[request.id].foreseeable for request in going_on)


def plan_chunk(
    chunk: Chunk, sampling: Sampling, block_size: int, history: History | None = None, drawn: int | None = None
) -> ChunkPlan:
    """The chunk's tokens with the blocks that hold the sequence up to its end; a history that is not kept is made.

    ``drawn``: of a chunk that follows, the place of its token among those that the step before draws.
    """
    request, end = chunk.request, chunk.start + chunk.length
    history = history or History(sampling, request.prompt, request.tokens[len(request.prompt) :])
    blocks, *others = (tuple(table[: -(-end // block_size)]) for table in request.tables)
    return ChunkPlan(
        tuple(request.tokens[chunk.start : end]) if drawn is None else UNKNOWN,
        chunk.start,
        blocks,
        history.sample(end) if chunk.samples else None,
        history.targets(request.prompt, chunk.start, end),
        tuple(others),
        drawn,
    )
