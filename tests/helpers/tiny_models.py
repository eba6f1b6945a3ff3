"""A way to run a model on P ranks in one process, in any gears and chunks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers.local_comm import LocalComm, run_ranks
from helpers.tiny_families import save_gemma3 as save_gemma3
from helpers.tiny_families import save_llama as save_llama
from helpers.tiny_families import save_tokenizer as save_tokenizer
from shiftcore.layout import Gear
from shiftruntime.kernels.ops import Ops
from shiftruntime.kernels.plain import PlainOps
from shiftruntime.models.decoder import Chunk, Decoder, StepBatch
from shiftruntime.models.kv_cache import KvCache, allocate_kv
from shiftruntime.models.source import ModelSource, open_model
from shiftruntime.models.weights import fill, plan_arena, view
from torch import Tensor

BLOCK_SIZE = 4


@dataclass(frozen=True)
class LoadedModel:
    """One arena that all ranks of a test share."""

    source: ModelSource
    ranks: int
    dtype: torch.dtype
    weights: dict[str, Tensor]

    @staticmethod
    def load(path: Path, ranks: int, dtype: torch.dtype = torch.float32) -> LoadedModel:
        source = open_model(path)
        layout = plan_arena(source.config, dtype, ranks)
        arena = bytearray(layout.total_bytes)
        fill(source, layout, arena)
        return LoadedModel(source, ranks, dtype, view(layout, arena))

    def decoder(self, comm: LocalComm, ops: Ops | None = None, num_blocks: int = 64) -> Decoder:
        config = self.source.config
        kv = allocate_kv(config, self.ranks, num_blocks, BLOCK_SIZE, self.dtype)
        return Decoder(config, self.weights, comm, ops or PlainOps(), kv)


@dataclass(frozen=True)
class Piece:
    """Tokens that one sequence computes in one step."""

    sequence: int
    first: int
    stop: int


@dataclass(frozen=True)
class PlannedStep:
    gear: Gear
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Run:
    """Logits of every token and the final KV caches by rank."""

    logits: list[Tensor]  # per sequence [tokens, vocabulary]
    caches: list[KvCache]


def random_steps(sequences: Sequence[Sequence[int]], gears: Sequence[Gear], rng: random.Random) -> list[PlannedStep]:
    """Every token once, in random chunks, a random gear per step; sequences overlap in the steps."""
    done = [0] * len(sequences)
    steps: list[PlannedStep] = []
    while any(len(s) > first for s, first in zip(sequences, done, strict=True)):
        pieces = []
        for i, sequence in enumerate(sequences):
            left = len(sequence) - done[i]
            if left and rng.random() < 0.8:
                width = rng.choice([1, 1, min(left, rng.randint(2, 9))])
                pieces.append(Piece(i, done[i], done[i] + width))
                done[i] += width
        if pieces:
            steps.append(PlannedStep(rng.choice(gears), tuple(pieces)))
    return steps


def one_step_each(sequences: Sequence[Sequence[int]], gear: Gear) -> list[PlannedStep]:
    """Each sequence whole, in a step of its own."""
    return [PlannedStep(gear, (Piece(i, 0, len(sequence)),)) for i, sequence in enumerate(sequences)]


def random_sequences(lengths: Sequence[int], rng: random.Random, vocabulary: int = 131) -> list[list[int]]:
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]


def block_table(sequence: int, blocks_per_sequence: int = 16) -> tuple[int, ...]:
    """Blocks of the sequences are interleaved, so that a wrong table shows."""
    return tuple(i * 4 + sequence for i in range(blocks_per_sequence))


def batch_of(step: PlannedStep, sequences: Sequence[Sequence[int]]) -> StepBatch:
    """All rows need logits."""
    chunks, ids, positions = [], [], []
    for piece in step.pieces:
        width = piece.stop - piece.first
        chunks.append(Chunk(len(ids), width, piece.first, block_table(piece.sequence)))
        ids += sequences[piece.sequence][piece.first : piece.stop]
        positions += range(piece.first, piece.stop)
    return StepBatch(step.gear, torch.tensor(ids), torch.tensor(positions), tuple(chunks), torch.arange(len(ids)))


def run_steps(
    model: LoadedModel,
    steps: Sequence[PlannedStep],
    sequences: Sequence[Sequence[int]],
    make_ops: Callable[[], Ops] = PlainOps,
) -> Run:
    """Run the steps on all ranks as threads; logits are gathered over the vocabulary shards."""

    def work(comm: LocalComm) -> tuple[list[Tensor], KvCache]:
        torch.set_num_threads(1)
        decoder = model.decoder(comm, make_ops())
        return [decoder.forward(batch_of(step, sequences)) for step in steps], decoder.kv

    by_rank = run_ranks(model.ranks, work)
    vocab = model.source.config.vocab_size
    logits = [torch.full((len(s), vocab), float("nan"), dtype=model.dtype) for s in sequences]
    for i, step in enumerate(steps):
        whole = torch.cat([shards[i] for shards, _ in by_rank], dim=1)[:, :vocab]
        row = 0
        for piece in step.pieces:
            width = piece.stop - piece.first
            logits[piece.sequence][piece.first : piece.stop] = whole[row : row + width]
            row += width
    return Run(logits, [kv for _, kv in by_rank])
