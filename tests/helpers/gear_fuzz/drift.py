"""How far plain arithmetic drifts: KL divergence of whole distributions between two ways to compute the same tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from helpers.gear_fuzz.ranks import LogicalRanks, logits_at_once
from helpers.gear_fuzz.tiny import LoadedWeights
from shiftcore.layout import Gear, allowed_gears
from shiftruntime.worker.messages import ChunkPlan
from torch import Tensor

REQUESTS = 16  # in a batch
MOST_RATIO = 2.0
# Nats. Log probabilities that are 1e-4 apart, as far as an engine may be from Hugging Face's, have a KL of 5e-9: half
# the square. Far below it, in float32, the ratio compares one rounding with another.
NEGLIGIBLE = 5e-9
_BLOCK_SIZE = 16


@dataclass(frozen=True)
class Drift:
    """KL divergences (nats) from the distributions of a request computed alone, one per position."""

    batched: Tensor  # one rank, all requests in one step
    shifted: Tensor  # P ranks, some requests per step, a random gear each

    @property
    def ratio(self) -> float:
        """How much further gears move the last percent than batching does; infinite if that moves nothing."""
        batched = percentile99(self.batched)
        return percentile99(self.shifted) / batched if batched else float("inf")

    @property
    def holds(self) -> bool:
        """Whether gears move distributions at most twice as far as batching does, or by nothing that counts."""
        return self.ratio <= MOST_RATIO or percentile99(self.shifted) <= NEGLIGIBLE

    def __str__(self) -> str:
        b, s = percentile99(self.batched), percentile99(self.shifted)
        return f"{len(self.batched)} positions: p99 of KL {b:.3g} from batch 1 to 16, {s:.3g} from one rank to gears"


def percentile99(values: Tensor) -> float:
    return float(values.to(torch.float64).quantile(0.99))


def measure(
    alone: LoadedWeights, pod: LoadedWeights, ranks: int, sequences: Sequence[Sequence[int]], widths: Sequence[int],
    seed: int,
) -> Drift:  # fmt: skip
    """All sequences are cut alike, into pieces of ``widths``; after each piece three distributions are compared."""
    rng = random.Random(seed)
    gears = allowed_gears(Gear(ranks, 1))
    groups = [_ranks(alone, 1, sequences), _ranks(alone, 1, sequences), _ranks(pod, ranks, sequences)]
    single, batch, shifting = groups
    batched, shifted = [], []
    everyone = list(range(len(sequences)))
    for end, width in zip(accumulate(widths), widths, strict=True):
        pieces = [
            _piece(i, sequence, end - width, end, len(alone.config.layer_groups))
            for i, sequence in enumerate(sequences)
        ]
        expected = torch.cat([_run(single, Gear(1, 1), [piece]) for piece in pieces])
        batched.append(_divergence(expected, _run(batch, Gear(1, 1), pieces)))
        some = [_run(shifting, rng.choice(gears), [pieces[i] for i in part]) for part in _parts(everyone, rng)]
        shifted.append(_divergence(expected, torch.cat(some)))
    for group in groups:
        group.close()
    return Drift(torch.cat(batched), torch.cat(shifted))


def _ranks(weights: LoadedWeights, size: int, sequences: Sequence[Sequence[int]]) -> LogicalRanks:
    tables = len(sequences) * len(weights.config.layer_groups)
    return LogicalRanks(weights, size, _BLOCK_SIZE, tables * _blocks_of(max(map(len, sequences))), exact=False)


def _blocks_of(tokens: int) -> int:
    return -(-tokens // _BLOCK_SIZE)


def _piece(number: int, sequence: Sequence[int], start: int, end: int, num_groups: int) -> ChunkPlan:
    tokens, per_table = tuple(sequence[start:end]), _blocks_of(len(sequence))
    firsts = [(number * num_groups + group) * per_table for group in range(num_groups)]
    first, *others = (tuple(range(first, first + _blocks_of(end))) for first in firsts)
    return ChunkPlan(tokens, start, first, targets=tokens, other_blocks=tuple(others))


def _parts(items: list[int], rng: random.Random) -> Iterator[list[int]]:
    """Neighbours in groups of random size."""
    while items:
        count = rng.randint(1, len(items))
        yield items[:count]
        items = items[count:]


def _run(ranks: LogicalRanks, gear: Gear, pieces: Sequence[ChunkPlan]) -> Tensor:
    """[tokens, vocabulary]"""
    with logits_at_once(1 << 40):
        ranks.run(gear, pieces)
    recorded = ranks.logits()
    assert recorded is not None, "logits were made in pieces"
    return recorded.logits


def _divergence(expected: Tensor, got: Tensor) -> Tensor:
    """KL(expected ‖ got) per row in float64."""
    p, q = (logits.to(torch.float64).log_softmax(-1) for logits in (expected, got))
    return (p.exp() * (p - q)).sum(-1)
