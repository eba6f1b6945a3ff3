"""What the largest steps need beside weights and cache: measured on the ranks, since no formula knows what torch keeps.

A step's memory grows with its rows, with the context that they look back at and with the product of both. So the
context is the longest there can be while the rows grow towards the budget, as far as the time allows; what is left then
is taken to be in proportion. That is no less than what the step needs: nothing grows faster than with one of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shiftcore.layout import Gear

from shiftruntime.engine.calibration import RunChunks
from shiftruntime.engine.memory import peak_bytes, reset_peak, resident_bytes
from shiftruntime.worker.messages import ChunkPlan, Penalties, Sample

_BUDGET_SECONDS = 4.0  # for the prefill and for the decodes each
_FIRST_ROWS = 32
_FIRST_CONTEXT = 256
_GROWTH = 8  # from one size to the next that is run


@dataclass(frozen=True)
class StepShape:
    """How large a step may be, and the cache at hand, which holds fewer tokens than a step may look back at."""

    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    num_blocks: int
    block_size: int
    layer_groups: int = 1

    @property
    def rows(self) -> int:
        """Of the largest prefill."""
        return min(self.max_batched_tokens, self.max_num_seqs * self.max_model_len)

    def prefill(self, rows: int) -> tuple[ChunkPlan, ...]:
        """The ends of prompts of maximal length, every log probability asked for."""
        full, rest = divmod(rows, self.max_model_len)
        lengths = [self.max_model_len] * full + [rest] * (rest > 0)
        return tuple(self._chunk(self.max_model_len - length, length, (1,) * length) for length in lengths)

    def decodes(self, context: int) -> tuple[ChunkPlan, ...]:
        """As many as there may be."""
        return tuple(self._chunk(context, 1) for _ in range(min(self.max_num_seqs, self.max_batched_tokens)))

    def one_token(self) -> tuple[ChunkPlan, ...]:
        return (self._chunk(0, 1),)

    def _chunk(self, start: int, length: int, targets: tuple[int, ...] = ()) -> ChunkPlan:
        """Its tokens lie on top of those of others: nobody reads what comes out, and the next start fits as well."""
        blocks = tuple(i % self.num_blocks for i in range(-(-(start + length) // self.block_size)))
        others = (blocks,) * (self.layer_groups - 1)
        return ChunkPlan((1,) * length, start, blocks, _costly_sample(start + length), targets, others)


class Activations:
    """The memory of a group of ranks, watched while they run steps that nobody asked for."""

    def __init__(self, run: RunChunks, pids: Iterable[int], gear: Gear, shape: StepShape) -> None:
        self._run = run
        self._pids = tuple(pids)
        self._gear = gear
        self._shape = shape
        self._settled: dict[int, int] = {}  # resident bytes per rank

    def settle(self) -> None:
        """One token, so that the weights are there; no more, since memory that torch keeps would not show as growth."""
        self._run(self._gear, self._shape.one_token())
        self._settled = {pid: resident_bytes(pid) for pid in self._pids}

    def growth_bytes(self) -> int:
        """What all ranks together need above what ``settle`` left, for a prefill and decodes in one step."""
        shape = self._shape
        return self._grow(shape.prefill, _FIRST_ROWS, shape.rows) + self._grow(
            shape.decodes, _FIRST_CONTEXT, shape.max_model_len - 1
        )

    def _grow(self, step: Callable[[int], tuple[ChunkPlan, ...]], size: int, largest: int) -> int:
        size, began = min(size, largest), time.monotonic()
        while True:
            started = time.monotonic()
            measured = self._measure(step(size))
            now = time.monotonic()
            following = min(size * _GROWTH, largest)
            if size == largest or now - began + (now - started) * following / size > _BUDGET_SECONDS:
                return -(-measured * largest // max(1, size))
            size = following

    def _measure(self, chunks: tuple[ChunkPlan, ...]) -> int:
        for pid in self._pids:
            reset_peak(pid)
        self._run(self._gear, chunks)
        return sum(max(0, peak_bytes(pid) - self._settled[pid]) for pid in self._pids)


def _costly_sample(position: int) -> Sample:
    """Every way of drawing that takes memory of its own."""
    return Sample(
        temperature=1.0, top_p=0.9, seed=1, position=position, logprob=True, top_logprobs=20, top_k=50, min_p=0.01,
        bias=((0, 1.0),), penalties=Penalties(1.1, 0.1, 0.1),
    )  # fmt: skip
