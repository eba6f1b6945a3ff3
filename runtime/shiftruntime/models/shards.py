"""Counting over vocabulary shards: what every rank learns of the others without seeing their logits.

Probabilities are counted as integers (multiples of 2^-44 of the likeliest token's), because integer sums do not depend
on how the vocabulary is sharded.
"""

from __future__ import annotations

from typing import Protocol

import torch
from shiftprotos import contract
from torch import Tensor

from shiftruntime.errors import RankError

MASS_BITS = 44  # 2^18 tokens of mass 2^44 stay below 2^63
MASS_DIGITS = 4  # of 12 bits; 48 bits hold any mass
FLOAT_DIGITS = 6  # hold any key of ``ordered``
_DIGIT_BITS = 12
_DIGIT_MASK = (1 << _DIGIT_BITS) - 1
_SIGN_OFFSET = 1 << (_DIGIT_BITS - 1)


class Gatherer(Protocol):
    """The part of parallel.comm.Comm that sampling needs."""

    rank: int
    size: int

    def all_gather(self, x: Tensor, group: tuple[int, ...]) -> Tensor: ...


class Functions(Protocol):
    """The part of kernels.ops.Ops that sampling needs."""

    def exp(self, x: Tensor) -> Tensor: ...

    def log(self, x: Tensor) -> Tensor: ...


def gather(x: Tensor, comm: Gatherer) -> Tensor:
    """[P, *x.shape] in rank order."""
    if comm.size == 1:
        return x[None]
    return comm.all_gather(x.contiguous(), tuple(range(comm.size)))


def check_peaks(peaks: Tensor) -> None:
    """Raises RankError for a row whose largest logit over all shards is no number; peaks [m], equal on all ranks."""
    for row, peak in enumerate(peaks.tolist()):
        if peak == float("-inf"):
            message = f"row {row} of the step's logits has no token to choose: all are banned or masked"
        elif not peak < float("inf"):
            message = f"row {row} of the step's logits has {peak} as its largest; the model computes no numbers"
        else:
            continue
        raise RankError(contract.REASON_RANK_FAILED, message)


def masses(logits: Tensor, peaks: Tensor, ops: Functions) -> Tensor:
    """exp(logits - peak) in units of 2^-44; logits [m, n], peaks [m], both float64 → [m, n] int64."""
    return (ops.exp(logits - peaks[:, None]) * float(1 << MASS_BITS)).round().to(torch.int64)


def ordered(values: Tensor) -> Tensor:
    """float64 → int64 in the same order (without NaN)."""
    bits = (values + 0.0).view(torch.int64)  # -0.0 becomes 0.0
    return bits ^ ((bits >> 63) & torch.iinfo(torch.int64).max)


def unordered(keys: Tensor) -> Tensor:
    """The values of these keys of ``ordered``."""
    return (keys ^ ((keys >> 63) & torch.iinfo(torch.int64).max)).view(torch.float64)


def select(keys: Tensor, weights: Tensor | None, need: Tensor, digits: int, comm: Gatherer) -> Tensor:
    """The largest key such that all entries of at least it weigh ``need`` together, over all shards; [m] int64.

    keys [m, width] int64, ``weights`` alike or None (each entry weighs 1), ``need`` [m] at most the whole weight. A
    radix selection: per pass one histogram of the next digit, summed over the ranks.
    """
    prefix = torch.zeros_like(need)
    for digit in reversed(range(digits)):
        shifted = keys >> (digit * _DIGIT_BITS)
        first = digit == digits - 1  # its digit has the sign
        index = shifted + _SIGN_OFFSET if first else shifted & _DIGIT_MASK
        live = None if first else (shifted >> _DIGIT_BITS) == prefix[:, None]
        weighed = torch.ones_like(keys) if weights is None else weights
        histogram = keys.new_zeros((len(need), 1 << _DIGIT_BITS))
        histogram.scatter_add_(1, index, weighed if live is None else weighed * live)
        from_top = gather(histogram, comm).sum(0).flip(1)
        reached = from_top.cumsum(1)  # weight of this digit and all above, from the highest digit down
        place = torch.searchsorted(reached, need[:, None])  # the first that reaches what is needed
        need = need - (reached - from_top).gather(1, place)[:, 0]
        chosen = _DIGIT_MASK - place[:, 0]
        prefix = chosen - _SIGN_OFFSET if first else (prefix << _DIGIT_BITS) | chosen
    return prefix
