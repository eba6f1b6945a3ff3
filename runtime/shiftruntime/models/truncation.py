"""Cutting a distribution on vocabulary shards: min-p, then top-k, then top-p, each of what the one before left.

Ties are kept together: every token as likely as the least likely one that stays, stays as well. So the result depends
neither on the order of the ids nor on the sharding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shiftruntime.models.sample import Sample
from shiftruntime.models.shards import (
    FLOAT_DIGITS,
    MASS_DIGITS,
    Functions,
    Gatherer,
    gather,
    mass_keys,
    masses,
    ordered,
    select,
    unordered,
)

MAX_CANDIDATES = 1024  # up to this top_k the ranks show each other their likeliest logits

_NONE = float("-inf")


def floors(logits: Tensor, peaks: Tensor, samples: Sequence[Sample], comm: Gatherer, ops: Functions) -> Tensor:
    """The smallest logit of each row that may still be drawn, [m] float64, equal on all ranks.

    logits [m, width] and their largest over all shards ``peaks`` [m], both float64 and divided by the temperature.
    """
    floor = torch.tensor([math.log(s.min_p) if s.min_p > 0 else _NONE for s in samples], dtype=torch.float64) + peaks
    few = [i for i, s in enumerate(samples) if 0 < s.top_k <= MAX_CANDIDATES]
    many = [i for i, s in enumerate(samples) if s.top_k > MAX_CANDIDATES]
    wide = [i for i, s in enumerate(samples) if s.top_p < 1 and i not in set(few)]
    if few:
        some = [samples[i] for i in few]
        floor[few] = _top_k_floors(logits[few], peaks[few], floor[few], some, comm, ops)
    if many:
        need = torch.tensor([samples[i].top_k for i in many]).clamp(max=logits.shape[1] * comm.size)
        least = unordered(select(ordered(logits[many]), None, need, FLOAT_DIGITS, comm))
        floor[many] = torch.maximum(floor[many], least)
    if wide:
        floor[wide] = _top_p_floors(logits[wide], peaks[wide], floor[wide], [samples[i] for i in wide], comm, ops)
    return floor


def _top_k_floors(
    logits: Tensor, peaks: Tensor, floor: Tensor, samples: Sequence[Sample], comm: Gatherer, ops: Functions
) -> Tensor:
    """top-k, then top-p, from the ranks' likeliest logits alone."""
    width = logits.shape[1]
    largest = max(s.top_k for s in samples)
    candidates = logits.topk(min(largest, width), dim=1).values
    candidates = gather(candidates, comm).movedim(0, 1).flatten(1).sort(1, descending=True).values  # [m, candidates]
    last = torch.tensor([s.top_k for s in samples]).clamp(max=candidates.shape[1]) - 1
    floor = torch.maximum(floor, candidates.gather(1, last[:, None])[:, 0])
    if all(s.top_p >= 1 for s in samples):
        return floor
    # Everything above the floor is a candidate; of the ties at the floor some may not be.
    ties = gather((logits == floor[:, None]).sum(1), comm).sum(0)
    above = candidates > floor[:, None]
    tied = masses(floor[:, None], peaks, ops)[:, 0]
    mass = masses(candidates, peaks, ops) * above
    totals = mass.sum(1) + ties * tied
    reached = mass.cumsum(1)
    for i, sample in enumerate(samples):
        if sample.top_p < 1:
            place = int(torch.searchsorted(reached[i], _need(sample.top_p, int(totals[i]))))
            least = int(mass[i, place]) if place < mass.shape[1] else 0
            if least > int(tied[i]):
                floor[i] = candidates[i][mass[i] >= least].amin()
    return floor


def _top_p_floors(
    logits: Tensor, peaks: Tensor, floor: Tensor, samples: Sequence[Sample], comm: Gatherer, ops: Functions
) -> Tensor:
    mass = masses(logits, peaks, ops).masked_fill_(logits < floor[:, None], 0)
    totals = gather(mass.sum(1), comm).sum(0).tolist()
    need = torch.tensor([_need(s.top_p, total) for s, total in zip(samples, totals, strict=True)])
    keys = mass_keys(mass)
    least = select(keys, mass, need, MASS_DIGITS, comm)[:, None]
    return torch.maximum(floor, _smallest(logits, keys >= least, comm))


def _need(top_p: float, total: int) -> int:
    """The mass that must stay, at least that of one token."""
    return max(1, min(total, math.ceil(top_p * total)))


def _smallest(logits: Tensor, kept: Tensor, comm: Gatherer) -> Tensor:
    """The smallest logit of those kept over all shards, [m]."""
    return gather(logits.masked_fill(~kept, float("inf")).amin(1), comm).amin(0)
