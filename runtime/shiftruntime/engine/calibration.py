"""Measures T(n) of every gear: interleaved, so that drift of the machine hits all gears alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shiftcore.costs import CostCurve, CostPoint
from shiftcore.layout import Gear

from shiftruntime.worker.messages import ChunkPlan, Sample

_CONTEXT_TOKENS = 64  # of the sequences in a decode step
_LONG_CONTEXT_TOKENS = 4096  # of those that show what context costs
_LONG_SEQUENCES = 4
_MIN_ROUNDS = 3
_MAX_ROUNDS = 9
_MIN_SIZES = 2


class Interrupted(Exception):
    """Nobody wants the measurement any more, or somebody has something better to do."""


RunChunks = Callable[[Gear, tuple[ChunkPlan, ...]], object]


@dataclass(frozen=True)
class CacheShape:
    """What a step that is measured must fit in."""

    max_num_seqs: int
    max_model_len: int
    num_blocks: int
    block_size: int
    layer_groups: int = 1


def calibrate(
    run: RunChunks, gears: tuple[Gear, ...], shape: CacheShape, *, max_batched_tokens: int, budget_seconds: float
) -> dict[Gear, CostCurve]:
    """A cost curve per gear over n = 1, 2, 4, … tokens, and what a pair of a token and its context adds.

    Small steps are decodes of n sequences, larger ones prefill chunks. The largest and the smallest size are always
    measured; of the others those that the budget can repeat three times. The KV cache must be unused: its blocks are
    overwritten.
    """
    steps = {n: chunks for n in _sizes(max_batched_tokens) if (chunks := step_chunks(n, shape)) is not None}
    started = time.monotonic()
    kept: list[int] = []
    # The first round warms each shape and is not counted. The largest size comes first: it tells the capacity.
    for n in [max(steps), *sorted(steps)[:-1]]:
        for gear in gears:
            _timed(run, gear, steps[n])
        kept.append(n)
        if (1 + _MIN_ROUNDS) * (time.monotonic() - started) > budget_seconds and len(kept) >= _MIN_SIZES:
            break
    contexts = _context_steps(shape)
    jobs = [steps[n] for n in sorted(kept)] + [chunks for _, chunks in contexts]
    samples: dict[tuple[Gear, int], list[float]] = defaultdict(list)
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.monotonic() - started > budget_seconds:
            break
        for job, chunks in enumerate(jobs):
            for gear in gears if done % 2 == 0 else gears[::-1]:
                samples[gear, job].append(_timed(run, gear, chunks))

    def curve(gear: Gear) -> CostCurve:
        points = tuple(CostPoint.of(n, samples[gear, job]) for job, n in enumerate(sorted(kept)))
        measured = [(pairs, samples[gear, len(kept) + i]) for i, (pairs, _) in enumerate(contexts)]
        return CostCurve(points, _pair_seconds(measured))

    return {gear: curve(gear) for gear in gears}


def _context_steps(shape: CacheShape) -> list[tuple[int, tuple[ChunkPlan, ...]]]:
    """The same decodes with a short and with a long context, and the pairs in each; none if no long one fits.

    The cache is not filled first: a step takes as long over zeros.
    """
    sequences = min(_LONG_SEQUENCES, shape.max_num_seqs)
    fitting = shape.num_blocks // sequences * shape.block_size
    long = min(_LONG_CONTEXT_TOKENS, shape.max_model_len - 1, fitting - 1)
    if long < 2 * _CONTEXT_TOKENS:
        return []
    return [(sequences * context, _chunks([(context, 1)] * sequences, shape)) for context in (_CONTEXT_TOKENS, long)]


def _pair_seconds(measured: Sequence[tuple[int, Sequence[float]]]) -> float:
    """Slope between the medians of the short and the long context; 0 where it is inside the noise or not measured."""
    if not measured:
        return 0.0
    (few, short), (many, long) = measured
    low, high = CostPoint.of(1, short), CostPoint.of(1, long)
    gain = high.median_seconds - low.median_seconds
    noise = 2 * (low.spread_seconds**2 / low.samples + high.spread_seconds**2 / high.samples) ** 0.5
    return gain / (many - few) if gain > noise else 0.0


def step_chunks(n: int, shape: CacheShape) -> tuple[ChunkPlan, ...] | None:
    """A step of n tokens: decodes if there may be n sequences and they fit, else prefills. None if nothing fits."""
    context = min(_CONTEXT_TOKENS, shape.max_model_len - 1)
    if n <= shape.max_num_seqs and n * -(-(context + 1) // shape.block_size) <= shape.num_blocks:
        return _chunks([(context, 1)] * n, shape)
    full, rest = divmod(n, shape.max_model_len)
    lengths = [(0, shape.max_model_len)] * full + [(0, rest)] * (rest > 0)
    blocks = sum(-(-length // shape.block_size) for _, length in lengths)
    return _chunks(lengths, shape) if blocks <= shape.num_blocks else None


def _chunks(lengths: Sequence[tuple[int, int]], shape: CacheShape) -> tuple[ChunkPlan, ...]:
    """One sequence per (tokens in the cache, tokens of the step), each with blocks of its own.

    The layer groups overwrite each other's blocks: nobody reads what comes out.
    """
    chunks: list[ChunkPlan] = []
    first = 0
    for start, length in lengths:
        stop = first - (-(start + length) // shape.block_size)
        blocks = tuple(range(first, stop))
        sample = Sample(temperature=0.0, top_p=1.0, seed=0, position=start + length)
        chunks.append(
            ChunkPlan((1,) * length, start, blocks, sample, other_blocks=(blocks,) * (shape.layer_groups - 1))
        )
        first = stop
    return tuple(chunks)


def _sizes(largest: int) -> list[int]:
    sizes = [1 << i for i in range(largest.bit_length())]
    return sizes if sizes[-1] == largest else [*sizes, largest]


def _timed(run: RunChunks, gear: Gear, chunks: tuple[ChunkPlan, ...]) -> float:
    started = time.perf_counter()
    run(gear, chunks)
    return time.perf_counter() - started
