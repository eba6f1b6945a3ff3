"""Noise for sampling without a generator: a hash of (seed, position, token id).

A token depends neither on its neighbours in the batch nor on the gear, and any part of the noise can be made alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shiftruntime.models.sample import Sample
from shiftruntime.models.shards import Functions

_GOLDEN = 0x9E3779B97F4A7C15  # constants of the splitmix64 hash
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_WORD = 1 << 64


def bases(samples: Sequence[Sample]) -> Tensor:
    """What seed and position make of a row, [m] int64."""
    return torch.tensor([_signed(_hash(_hash(s.seed % _WORD) + s.position)) for s in samples], dtype=torch.int64)


def gumbel(token_ids: Tensor, base: Tensor, ops: Functions) -> Tensor:
    """Gumbel noise of token ids, float64; ``token_ids`` and ``base`` int64 and broadcast together."""
    words = (token_ids + 1) * _signed(_GOLDEN) + base
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
