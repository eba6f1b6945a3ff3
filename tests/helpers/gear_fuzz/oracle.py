"""What one rank computes for one request alone: the expectation for every logit, token and cached head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import torch
from helpers.gear_fuzz.case import RequestSpec
from helpers.gear_fuzz.ranks import LogicalRanks
from helpers.gear_fuzz.tiny import LoadedWeights
from shiftcore.block_tables import SequenceBlocks
from shiftcore.layout import Gear
from shiftcore.prefix_cache import PrefixChain
from shiftcore.scheduler import Chunk, Request
from shiftruntime.engine.plans import plan_chunk
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.models.sampling import token_logprobs
from shiftruntime.parallel.local import Board, LocalComm
from shiftruntime.worker.messages import ChunkPlan
from torch import Tensor

_BLOCK_SIZE = 16
_NUM_BLOCKS = 8
_ALONE = Gear(1, 1)


@dataclass(frozen=True)
class Expectation:
    """Of all tokens of a request, the last one included: its logits are those of the token to come."""

    tokens: tuple[int, ...]
    logits: Tensor  # [tokens, vocabulary]; rows of prompt tokens that nobody needs are there too
    drawn: dict[int, tuple[int, float]]  # position -> (token, log probability)
    k: Tensor  # [layers, tokens, kv heads, head_dim]
    v: Tensor

    def score(self, position: int, target: int) -> float:
        """Log probability of ``target`` after the token at ``position``."""
        row = self.logits[position : position + 1]
        return float(token_logprobs(row, torch.tensor([target]), LocalComm(Board(1), 0), ExactOps())[0])


def expect(
    weights: LoadedWeights, spec: RequestSpec, tokens: Sequence[int], token_by_token: bool = False
) -> Expectation:
    """Compute all ``tokens`` of a request. They are forced: whether they are those drawn is for the caller to compare.

    The prompt is one chunk and every later token another, all in one step, or each in a step of its own.
    """
    ranks = _one_rank(weights)
    first = len(spec.prompt)
    ends = range(first, len(tokens) + 1)
    blocks = list(range(_NUM_BLOCKS))
    chunks, drawn, rows = [], {}, []
    for end in ends:
        start = 0 if end == first else end - 1
        request = Request(spec.id, spec.prompt, spec.sampling.max_tokens)
        request.tokens = list(tokens[:end])
        request.sequence = SequenceBlocks((blocks,), PrefixChain(spec.tenant, _BLOCK_SIZE))
        plan = plan_chunk(Chunk(request, start, end - start, samples=True), spec.sampling, _BLOCK_SIZE)
        chunks.append(_with_all_rows(plan) if start == 0 else plan)
    for steps in [[chunk] for chunk in chunks] if token_by_token else [chunks]:
        done = ranks.run(_ALONE, steps)
        drawn_here = zip(done.tokens, done.logprobs, strict=True)
        drawn |= {chunk.start + len(chunk.tokens): value for chunk, value in zip(steps, drawn_here, strict=True)}
        rows.append(ranks.logits().logits)
    (cache,) = ranks.caches
    k, v = (part.flatten(1, 2)[:, : len(tokens)].clone() for part in (cache.k, cache.v))
    return Expectation(tuple(tokens), torch.cat(rows), drawn, k, v)


def _with_all_rows(plan: ChunkPlan) -> ChunkPlan:
    return msgspec.structs.replace(plan, targets=plan.tokens)


@lru_cache(maxsize=8)
def _one_rank(weights: LoadedWeights) -> LogicalRanks:
    return LogicalRanks(weights, 1, _BLOCK_SIZE, _NUM_BLOCKS)
