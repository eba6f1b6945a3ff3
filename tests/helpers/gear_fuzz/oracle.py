"""What one rank computes for one request alone: the expectation for every logit, token and cached head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import torch
from helpers.gear_fuzz.case import RequestSpec
from helpers.gear_fuzz.ranks import CachedHeads, LogicalRanks, layer_windows
from helpers.gear_fuzz.tiny import LoadedWeights
from helpers.local_comm import Board, LocalComm
from shiftcore.block_tables import SequenceBlocks
from shiftcore.layout import Gear
from shiftcore.prefix_cache import PrefixChain
from shiftcore.scheduler import Chunk, Request
from shiftruntime.engine.messages import TopLogprobs
from shiftruntime.engine.plans import plan_chunk
from shiftruntime.engine.samples import step_results
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.models.sampling import token_logprobs
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
    drawn: dict[int, tuple[int, float, TopLogprobs]]  # by position: token, its log probability, the likeliest
    heads: CachedHeads

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
    groups = range(len(layer_windows(weights.config)))
    tables = tuple(list(range(group * _NUM_BLOCKS, (group + 1) * _NUM_BLOCKS)) for group in groups)
    chunks = [
        _chunk(spec, tokens, 0 if end == first else end - 1, end, tables) for end in range(first, len(tokens) + 1)
    ]
    drawn, rows = {}, []
    for batch in [(chunk,) for chunk in chunks] if token_by_token else [tuple(chunks)]:
        plans = [_planned(chunk, spec) for chunk in batch]
        results = step_results(batch, plans, ranks.run(_ALONE, plans))
        recorded = ranks.logits()
        assert recorded is not None, "logits were made in pieces"
        drawn |= {
            chunk.end: (results.tokens[name], results.logprobs[name], results.likeliest[name])
            for chunk in batch
            if (name := chunk.request.id)
        }
        rows.append(recorded.logits)
    return Expectation(tuple(tokens), torch.cat(rows), drawn, ranks.cached(tables, len(tokens))[0])


def _chunk(spec: RequestSpec, tokens: Sequence[int], start: int, end: int, tables: tuple[list[int], ...]) -> Chunk:
    """As if the request had just got its token before ``end``."""
    request = Request(f"{spec.id}@{end}", spec.prompt, spec.sampling.max_tokens)
    request.tokens = list(tokens[:end])
    request.sequence = SequenceBlocks(tables, PrefixChain(spec.tenant, _BLOCK_SIZE))
    return Chunk(request, start, end - start, samples=True)


def _planned(chunk: Chunk, spec: RequestSpec) -> ChunkPlan:
    """The engine's plan, but all rows of the prompt are wanted."""
    plan = plan_chunk(chunk, spec.sampling, _BLOCK_SIZE)
    return msgspec.structs.replace(plan, targets=plan.tokens) if chunk.start == 0 else plan


@lru_cache(maxsize=8)
def _one_rank(weights: LoadedWeights) -> LogicalRanks:
    return LogicalRanks(weights, 1, _BLOCK_SIZE, _NUM_BLOCKS * len(layer_windows(weights.config)))
