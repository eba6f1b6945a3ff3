"""Measures T(n) of every gear: interleaved, so that drift of the machine hits all gears alike."""

from __future__ import annotations

import time
from collections.abc import Callable

from shiftcore.costs import CostCurve, CostPoint
from shiftcore.layout import Gear

from shiftruntime.worker.messages import ChunkPlan, Sample

_CONTEXT_TOKENS = 64  # of the sequences in a decode step
_MIN_ROUNDS = 3
_MAX_ROUNDS = 9
_MIN_SIZES = 2

RunChunks = Callable[[Gear, tuple[ChunkPlan, ...]], object]


def calibrate(
    run: RunChunks,
    gears: tuple[Gear, ...],
    *,
    max_num_seqs: int,
    max_batched_tokens: int,
    max_model_len: int,
    num_blocks: int,
    block_size: int,
    budget_seconds: float,
) -> dict[Gear, CostCurve]:
    """A cost curve per gear over n = 1, 2, 4, … tokens.

    Small steps are decodes of n sequences, larger ones prefill chunks. The largest and the smallest size are always
    measured; of the others those that the budget can repeat three times. The KV cache must be unused: its blocks are
    overwritten.
    """

    def chunks_of(n: int) -> tuple[ChunkPlan, ...] | None:
        return step_chunks(n, max_num_seqs, max_model_len, num_blocks, block_size)

    sizes = [n for n in _sizes(max_batched_tokens) if chunks_of(n) is not None]
    samples: dict[tuple[Gear, int], list[float]] = {}
    started = time.monotonic()
    kept: list[int] = []
    # The first round warms each shape and is not counted. The largest size comes first: it tells the capacity.
    for n in [sizes[-1], *sizes[:-1]]:
        for gear in gears:
            _timed(run, gear, chunks_of(n))
        kept.append(n)
        if (1 + _MIN_ROUNDS) * (time.monotonic() - started) > budget_seconds and len(kept) >= _MIN_SIZES:
            break
    kept.sort()
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.monotonic() - started > budget_seconds:
            break
        for n in kept:
            for gear in gears if done % 2 == 0 else gears[::-1]:
                samples.setdefault((gear, n), []).append(_timed(run, gear, chunks_of(n)))
    return {gear: CostCurve(tuple(CostPoint.of(n, samples[gear, n]) for n in kept)) for gear in gears}


def step_chunks(
    n: int, max_num_seqs: int, max_model_len: int, num_blocks: int, block_size: int
) -> tuple[ChunkPlan, ...] | None:
    """A step of n tokens: decodes if there may be n sequences and they fit, else prefills. None if nothing fits."""
    context = min(_CONTEXT_TOKENS, max_model_len - 1)
    if n <= max_num_seqs and n * -(-(context + 1) // block_size) <= num_blocks:
        lengths = [(context, 1)] * n
    else:
        full, rest = divmod(n, max_model_len)
        lengths = [(0, max_model_len)] * full + [(0, rest)] * (rest > 0)
    chunks: list[ChunkPlan] = []
    first = 0
    for start, length in lengths:
        blocks = -(-(start + length) // block_size)
        if first + blocks > num_blocks:
            return None
        sample = Sample(temperature=0.0, top_p=1.0, seed=0, position=start + length)
        chunks.append(ChunkPlan((1,) * length, start, tuple(range(first, first + blocks)), sample))
        first += blocks
    return tuple(chunks)


def _sizes(largest: int) -> list[int]:
    sizes = [1 << i for i in range(largest.bit_length())]
    return sizes if sizes[-1] == largest else [*sizes, largest]


def _timed(run: RunChunks, gear: Gear, chunks: tuple[ChunkPlan, ...] | None) -> float:
    assert chunks is not None, "sizes that do not fit were left out"
    started = time.perf_counter()
    run(gear, chunks)
    return time.perf_counter() - started
