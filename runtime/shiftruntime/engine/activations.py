"""What the largest steps need beside weights and cache: measured on the ranks, since no formula knows what torch keeps.

A step's memory has parts, and each is measured by itself as it grows: attention of a prefill with its rows at the
longest context, attention of all decodes with their context, logits with the rows that are scored or drawn from. What
the time does not allow to be run is taken to be in proportion, which is no less than what the part needs. Measured
together they would not do: logits of a large vocabulary do not grow with the context, and in proportion to it they
would seem to need more memory than there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shiftcore.layout import Gear

from shiftruntime.engine.calibration import RunChunks
from shiftruntime.engine.memory import peak_bytes, reset_peak, resident_bytes
from shiftruntime.worker.messages import ChunkPlan, Penalties, Sample

_BUDGET_SECONDS = 2.0  # for each part
_FIRST_ROWS = 32
_FIRST_CONTEXT = 256
_FIRST_LOGITS = 8
_GROWTH = 8  # from one size to the next that is run


@dataclass(frozen=True)
class StepShape:
    """How large a step may be, and the cache at hand, which holds fewer tokens than a step may look back at."""

    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    num_blocks: int
    block_size: int
    logit_rows: int  # that are scored at once
    layer_groups: int = 1

    @property
    def rows(self) -> int:
        """Of the largest prefill."""
        return min(self.max_batched_tokens, self.max_num_seqs * self.max_model_len)

    @property
    def most_decodes(self) -> int:
        return min(self.max_num_seqs, self.max_batched_tokens)

    def prefill(self, rows: int, scored: bool = False) -> tuple[ChunkPlan, ...]:
        """The ends of prompts of maximal length."""
        full, rest = divmod(rows, self.max_model_len)
        lengths = [self.max_model_len] * full + [rest] * (rest > 0)
        return tuple(self._chunk(self.max_model_len - length, length, scored=scored) for length in lengths)

    def decodes(self, context: int, drawn: bool = False) -> tuple[ChunkPlan, ...]:
        """As many as there may be."""
        return tuple(self._chunk(context, 1, drawn=drawn) for _ in range(self.most_decodes))

    def scores(self, rows: int) -> tuple[ChunkPlan, ...]:
        """Prompts whose log probabilities are asked for, without context."""
        full, rest = divmod(rows, self.max_model_len)
        lengths = [self.max_model_len] * full + [rest] * (rest > 0)
        return tuple(self._chunk(0, length, scored=True) for length in lengths)

    def draws(self, rows: int) -> tuple[ChunkPlan, ...]:
        """First tokens of so many sequences."""
        return tuple(self._chunk(0, 1, drawn=True) for _ in range(rows))

    def _chunk(self, start: int, length: int, scored: bool = False, drawn: bool = False) -> ChunkPlan:
        """Its tokens lie on top of those of others: nobody reads what comes out, and the next start fits as well."""
        blocks = tuple(i % self.num_blocks for i in range(-(-(start + length) // self.block_size)))
        others = (blocks,) * (self.layer_groups - 1)
        sample = _costly_sample(start + length) if drawn else None
        return ChunkPlan((1,) * length, start, blocks, sample, (1,) * length if scored else (), others)


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
        self._run(self._gear, self._shape.draws(1))
        self._settled = {pid: resident_bytes(pid) for pid in self._pids}

    def growth_bytes(self) -> int:
        """What all ranks together need above what ``settle`` left, for a prefill and decodes in one step."""
        shape = self._shape
        parts = (
            (shape.prefill, _FIRST_ROWS, shape.rows),
            (shape.decodes, _FIRST_CONTEXT, shape.max_model_len - 1),
            (shape.scores, _FIRST_LOGITS, min(shape.rows, shape.logit_rows)),
            (shape.draws, _FIRST_LOGITS, shape.most_decodes),
        )
        return sum(self._grow(*part) for part in parts)

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
