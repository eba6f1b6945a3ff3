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
MASS_DIGITS = 5  # of 12 bits, hold any key of ``mass_keys``
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


def mass_keys(mass: Tensor) -> Tensor:
    """Masses → int64 in the same order, their exponent in the first digit: it parts them better than their value."""
    return mass.to(torch.float64).view(torch.int64) >> 4  # at most 44 bits of the mantissa are in use, 48 stay


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
    shift = (digits - 1) * _DIGIT_BITS
    first = keys >> shift  # the digit with the sign
    weighed = torch.ones_like(keys) if weights is None else weights
    histogram = keys.new_zeros((len(need), 1 << _DIGIT_BITS)).scatter_add_(1, first + _SIGN_OFFSET, weighed)
    place, need = _reached(histogram, need, comm)
    prefix = place - _SIGN_OFFSET
    # Few entries share the first digits of the one that is sought; only they are looked at again.
    left = [
        _shared(row, weight, shift, digit) for row, weight, digit in zip(keys, weighed, prefix.tolist(), strict=True)
    ]
    while shift:
        shift -= _DIGIT_BITS
        histogram.zero_()
        for row, (key, weight) in zip(histogram, left, strict=True):
            row.scatter_add_(0, (key >> shift) & _DIGIT_MASK, weight)
        place, need = _reached(histogram, need, comm)
        prefix = (prefix << _DIGIT_BITS) | place
        left = [_shared(*entries, shift, value) for entries, value in zip(left, prefix.tolist(), strict=True)]
    return prefix


def _shared(keys: Tensor, weights: Tensor, shift: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Those entries of a row whose keys begin with the prefix."""
    live = ((keys >> shift) == prefix).nonzero()[:, 0]
    return keys[live], weights[live]


def _reached(histogram: Tensor, need: Tensor, comm: Gatherer) -> tuple[Tensor, Tensor]:
    """The digit at which the weight from the highest digit down reaches ``need``, and what is needed of that digit."""
    from_top = gather(histogram, comm).sum(0).flip(1)
    reached = from_top.cumsum(1)
    place = torch.searchsorted(reached, need[:, None])
    return _DIGIT_MASK - place[:, 0], need - (reached - from_top).gather(1, place)[:, 0]
