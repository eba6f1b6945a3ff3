"""Measures T(n) of every gear: interleaved, so that drift of the machine hits all gears alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftcore.refinement import next_size

from shiftruntime.worker.messages import ChunkPlan, Sample

_CONTEXT_TOKENS = 64  # of the sequences in a decode step
_LONG_CONTEXT_TOKENS = 4096  # of those that show what context costs
_LONG_SEQUENCES = 4
_MIN_ROUNDS = 3
_MAX_ROUNDS = 9
_MIN_SIZES = 2
_VARIED_SHARE = 32  # a length then differs by a sixth at most
_LADDER_SHARE = 0.75  # of the budget; the rest is for sizes near a crossover


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


@dataclass(frozen=True)
class _Job:
    """A step of about so many tokens, varied by round, and what that many took in each gear, a value per round."""

    tokens: int
    steps: tuple[tuple[ChunkPlan, ...], ...]
    seconds: defaultdict[Gear, list[float]] = field(default_factory=lambda: defaultdict(list))


def calibrate(
    run: RunChunks, gears: tuple[Gear, ...], shape: CacheShape, *, max_batched_tokens: int, budget_seconds: float
) -> dict[Gear, CostCurve]:
    """A cost curve per gear over n = 1, 2, 4, … tokens, and what a pair of a token and its context adds.

    ``gears`` from tp to base. Small steps are decodes of n sequences. Larger ones are prefill chunks, of another length
    near n in each round: hardly a prompt that is served has the length of one before, and what a kernel library
    compiles for a size, as oneDNN does, would show its price only once. The largest and the smallest size are always
    measured; of the others those that the budget can repeat three times. With what is left of it, sizes between the two
    that bracket a crossover follow. The KV cache must be unused: its blocks are overwritten.
    """
    started = time.monotonic()
    sizes = _warmed(run, gears, shape, max_batched_tokens, budget_seconds)
    contexts = {pairs: _Job(len(chunks), (chunks,)) for pairs, chunks in _context_steps(shape)}
    jobs = [*sizes.values(), *contexts.values()]
    done = 0
    while done < _MIN_ROUNDS or (done < _MAX_ROUNDS and time.monotonic() - started <= _LADDER_SHARE * budget_seconds):
        _round(run, gears, jobs, done)
        done += 1
    _refine(run, gears, shape, sizes, rounds=done, deadline=started + budget_seconds)
    pair_seconds = {
        gear: _pair_seconds([(pairs, job.seconds[gear]) for pairs, job in contexts.items()]) for gear in gears
    }
    return _curves(gears, sizes, pair_seconds)


def _warmed(
    run: RunChunks, gears: tuple[Gear, ...], shape: CacheShape, max_batched_tokens: int, budget_seconds: float
) -> dict[int, _Job]:
    """The sizes that the budget can repeat, ascending. The first round warms each shape and is not counted."""
    largest = max_batched_tokens
    steps = {n: varied for n in _sizes(largest) if (varied := _varied(n, shape, largest, gears[0].ranks))}
    started = time.monotonic()
    kept: list[int] = []
    for n in [max(steps), *sorted(steps)[:-1]]:  # the largest first: it tells the capacity
        for gear in gears:
            run(gear, steps[n][0])
        kept.append(n)
        if (1 + _MIN_ROUNDS) * (time.monotonic() - started) > budget_seconds and len(kept) >= _MIN_SIZES:
            break
    return {n: _Job(n, steps[n]) for n in sorted(kept)}


def _refine(
    run: RunChunks, gears: tuple[Gear, ...], shape: CacheShape, sizes: dict[int, _Job], *, rounds: int, deadline: float
) -> None:
    """Add the sizes that tell crossovers apart, each measured as often as the others, while there is time for one."""
    largest = max(sizes)
    while (n := next_size(GearTable(gears[-1], costs := _curves(gears, sizes)))) is not None:
        steps = _varied(n, shape, largest, gears[0].ranks)
        expected = (1 + rounds) * sum(costs[gear].seconds(n) for gear in gears)
        if not steps or time.monotonic() + expected > deadline:
            return
        job = _Job(n, steps)
        for gear in gears:  # warms the shape
            run(gear, steps[0])
        for done in range(rounds):
            _round(run, gears, [job], done)
        sizes[n] = job


def _round(run: RunChunks, gears: tuple[Gear, ...], jobs: Sequence[_Job], number: int) -> None:
    for job in jobs:
        chunks = job.steps[number % len(job.steps)]
        share = job.tokens / sum(len(chunk.tokens) for chunk in chunks)
        for gear in gears if number % 2 == 0 else gears[::-1]:
            started = time.perf_counter()
            run(gear, chunks)
            job.seconds[gear].append((time.perf_counter() - started) * share)


def _curves(
    gears: tuple[Gear, ...], sizes: Mapping[int, _Job], pair_seconds: Mapping[Gear, float] | None = None
) -> dict[Gear, CostCurve]:
    known = pair_seconds or {}
    return {
        gear: CostCurve(tuple(CostPoint.of(n, sizes[n].seconds[gear]) for n in sorted(sizes)), known.get(gear, 0.0))
        for gear in gears
    }


def _varied(n: int, shape: CacheShape, largest: int, ranks: int) -> tuple[tuple[ChunkPlan, ...], ...]:
    """Steps of about n tokens, prefills of other lengths and, in every gear, of other rows; none if nothing fits."""
    step = step_chunks(n, shape)
    if step is None or len(step[0].tokens) == 1 or n < _VARIED_SHARE * ranks:
        return () if step is None else (step,)
    near = (n + ranks * sign * i for i in range(1, _MAX_ROUNDS // 2 + 2) for sign in (-1, 1))
    return tuple(chunks for size in near if size <= largest and (chunks := step_chunks(size, shape)))


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
