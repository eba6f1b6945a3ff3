"""Choosing tokens on vocabulary shards: every rank ends up with the same tokens, and no rank sees all logits.

Probabilities are counted as integers (multiples of 2^-44 of the likeliest token's), because integer sums do not depend
on how the vocabulary is sharded. Noise is a hash of (seed, position, token id): no generator state, so a token depends
neither on its neighbours in the batch nor on the gear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_MASS_BITS = 44  # 2^18 tokens of mass 2^44 stay below 2^63
_DIGIT_BITS = 12
_DIGITS = 4  # 48 bits hold any mass
_NOISE_ELEMENTS = 1 << 20  # noise made at once
_GOLDEN = 0x9E3779B97F4A7C15  # constants of the splitmix64 hash
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_WORD = 1 << 64


class Gatherer(Protocol):
    """The part of parallel.comm.Comm that sampling needs."""

    rank: int
    size: int

    def all_gather(self, x: Tensor, group: tuple[int, ...]) -> Tensor: ...


class Functions(Protocol):
    """The part of kernels.ops.Ops that sampling needs."""

    def exp(self, x: Tensor) -> Tensor: ...

    def log(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SamplingRow:
    """How to choose one row's token. Temperature 0 is greedy; then ``top_p`` and ``seed`` say nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    position: int = 0  # of the token that is being chosen
    logprob: bool = True  # whether its log-probability is wanted; costs a pass over the vocabulary


def sample(
    local_logits: Tensor, params: Sequence[SamplingRow], comm: Gatherer, ops: Functions
) -> tuple[Tensor, Tensor]:
    """local_logits [m, padded vocabulary / P] → token ids [m] int64 and log-probabilities [m] float64, on all ranks.

    The log-probability is that of the model (temperature 1); NaN where a row does not want it.
    """
    assert local_logits.shape[0] == len(params), f"{local_logits.shape[0]} rows of logits, {len(params)} of parameters"
    if not params:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    best, first = local_logits.max(1)  # of this shard, the lowest id among equals
    best = best.to(torch.float64)
    noisy = [i for i, row in enumerate(params) if row.temperature > 0]
    if noisy:
        peaks = _gather(best[noisy], comm).amax(0)
        scores = _noisy_scores(local_logits[noisy].double(), peaks, [params[i] for i in noisy], comm, ops)
        best[noisy], first[noisy] = scores.max(1)
    tokens = _best_of_shards(best, first + comm.rank * local_logits.shape[1], comm)
    logprobs = torch.full((len(params),), float("nan"), dtype=torch.float64)
    wanted = [i for i, row in enumerate(params) if row.logprob]
    if wanted:
        logprobs[wanted] = token_logprobs(local_logits[wanted], tokens[wanted], comm, ops)
    return tokens, logprobs


def token_logprobs(local_logits: Tensor, token_ids: Tensor, comm: Gatherer, ops: Functions) -> Tensor:
    """Log-probabilities of given tokens, [m] float64, on all ranks: for teacher forcing and for what was sampled."""
    logits = local_logits.to(torch.float64)
    peaks = _gather(logits.amax(1), comm).amax(0)  # [m]
    total = _gather(_masses(logits, peaks, ops).sum(1), comm).sum(0)  # [m] int64
    width = logits.shape[1]
    local = token_ids - comm.rank * width
    own = (local >= 0) & (local < width)
    chosen = logits.gather(1, local.clamp(0, width - 1)[:, None])[:, 0].masked_fill(~own, float("-inf"))
    chosen = _gather(chosen, comm).amax(0)
    normaliser = [math.log(mass) - _MASS_BITS * math.log(2) for mass in total.tolist()]
    return chosen - peaks - torch.tensor(normaliser, dtype=torch.float64)


def _gather(x: Tensor, comm: Gatherer) -> Tensor:
    """[P, *x.shape] in rank order."""
    if comm.size == 1:
        return x[None]
    return comm.all_gather(x.contiguous(), tuple(range(comm.size)))


def _masses(logits: Tensor, peaks: Tensor, ops: Functions) -> Tensor:
    """exp(logits - peak) in units of 2^-44, int64 like ``logits``."""
    return (ops.exp(logits - peaks[:, None]) * float(1 << _MASS_BITS)).round().to(torch.int64)


def _best_of_shards(best: Tensor, ids: Tensor, comm: Gatherer) -> Tensor:
    """Of each shard's best score and its id, [m] both: the id of the best, the lowest among equals; [m] int64."""
    values, tokens = _gather(best, comm), _gather(ids, comm)  # [P, m]
    return tokens.masked_fill(values != values.amax(0), torch.iinfo(torch.int64).max).amin(0)


def _noisy_scores(
    logits: Tensor, peaks: Tensor, params: Sequence[SamplingRow], comm: Gatherer, ops: Functions
) -> Tensor:
    """logits [m, width] float64 → logits / temperature + Gumbel noise, -inf outside the nucleus."""
    temperature = torch.tensor([row.temperature for row in params], dtype=torch.float64)
    logits, peaks = logits / temperature[:, None], peaks / temperature
    nucleus = [i for i, row in enumerate(params) if row.top_p < 1]
    if nucleus:
        masses = _masses(logits[nucleus], peaks[nucleus], ops)
        outside = masses < _thresholds(masses, [params[i].top_p for i in nucleus], comm)[:, None]
        logits[nucleus] = logits[nucleus].masked_fill(outside, float("-inf"))
    width = logits.shape[1]
    step = max(1, _NOISE_ELEMENTS // width)
    for first in range(0, len(params), step):
        logits[first : first + step] += _gumbel(params[first : first + step], comm.rank * width, width, ops)
    return logits


def _thresholds(masses: Tensor, top_p: Sequence[float], comm: Gatherer) -> Tensor:
    """The largest mass such that all tokens of at least it hold ``top_p`` of the total, [m] int64.

    A radix selection: per pass one histogram of the next digit, weighted by mass and summed over the ranks.
    """
    totals = _gather(masses.sum(1), comm).sum(0).tolist()
    need = torch.tensor([max(1, min(t, math.ceil(p * t))) for p, t in zip(top_p, totals, strict=True)])
    prefix = torch.zeros_like(need)
    for digit in reversed(range(_DIGITS)):
        shifted = masses >> (digit * _DIGIT_BITS)
        live = (shifted >> _DIGIT_BITS) == prefix[:, None]
        histogram = masses.new_zeros((len(need), 1 << _DIGIT_BITS))
        histogram.scatter_add_(1, shifted & ((1 << _DIGIT_BITS) - 1), masses * live)
        histogram = _gather(histogram, comm).sum(0)
        from_top = histogram.flip(1).cumsum(1)  # mass of this digit and all above, from the highest digit down
        index = torch.searchsorted(from_top, need[:, None])[:, 0]  # the first that reaches what is needed
        above = from_top.gather(1, index[:, None])[:, 0] - histogram.flip(1).gather(1, index[:, None])[:, 0]
        need = need - above
        prefix = (prefix << _DIGIT_BITS) | ((1 << _DIGIT_BITS) - 1 - index)
    return prefix


def _gumbel(params: Sequence[SamplingRow], first: int, width: int, ops: Functions) -> Tensor:
    """Gumbel noise of token ids [first, first + width), [m, width] float64."""
    bases = torch.tensor([_signed(_hash(_hash(row.seed % _WORD) + row.position)) for row in params])
    words = torch.arange(first + 1, first + width + 1) * _signed(_GOLDEN) + bases[:, None]
    for shift, factor in _MIX:
        words = (words ^ _shift_right(words, shift)) * _signed(factor)
    words = words ^ _shift_right(words, 31)
    uniform = (_shift_right(words, 12).to(torch.float64) + 0.5) * 2.0**-52  # inside (0, 1)
    return -ops.log(-ops.log(uniform))


def _hash(value: int) -> int:
    """splitmix64 of one 64-bit word."""
    word = (value + _GOLDEN) % _WORD
    for shift, factor in _MIX:
        word = ((word ^ (word >> shift)) * factor) % _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift of 64-bit words held as int64."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
