"""Log probabilities on vocabulary shards, of the model's own distribution: temperature 1, before any edit or cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shiftruntime.models.sample import Likeliest
from shiftruntime.models.shards import MASS_BITS, Functions, Gatherer, check_peaks, gather, masses

_ELEMENTS = 1 << 22  # logits whose masses are computed at once: each costs some 40 bytes


def token_logprobs(local_logits: Tensor, token_ids: Tensor, comm: Gatherer, ops: Functions) -> Tensor:
    """Log probabilities of given tokens, [m] float64, on all ranks; local_logits [m, padded vocabulary / P]."""
    return token_logits(local_logits, token_ids, comm) - log_normalisers(local_logits, comm, ops)


def log_normalisers(local_logits: Tensor, comm: Gatherer, ops: Functions) -> Tensor:
    """log of the sum of exp(logits), [m] float64, on all ranks; raises RankError for logits that are no numbers."""
    peaks = gather(local_logits.amax(1).to(torch.float64), comm).amax(0)  # [m]
    check_peaks(peaks)
    step = max(1, _ELEMENTS // local_logits.shape[1])
    parts = [
        masses(some.to(torch.float64), peak, ops).sum(1)
        for some, peak in zip(torch.split(local_logits, step), torch.split(peaks, step), strict=True)
    ]
    totals = gather(torch.cat(parts), comm).sum(0)  # [m] int64
    logs = [math.log(mass) - MASS_BITS * math.log(2) for mass in totals.tolist()]
    return peaks + torch.tensor(logs, dtype=torch.float64)


def likeliest(
    local_logits: Tensor, counts: Sequence[int], normalisers: Tensor, comm: Gatherer
) -> tuple[Likeliest, ...]:
    """Per row its ``counts`` likeliest tokens; of equals the lowest ids first. On all ranks; normalisers [m]."""
    width = local_logits.shape[1]
    most = min(max(counts), width)
    values = local_logits.new_empty((len(counts), most), dtype=torch.float64)
    ids = torch.empty((len(counts), most), dtype=torch.int64)
    for i, row in enumerate(local_logits):
        ids[i] = _highest(row, most)
        values[i] = row[ids[i]].to(torch.float64)
    all_values = gather(values, comm).movedim(0, 1).flatten(1)  # [m, P * most], in the order of ids among equals
    all_ids = gather(ids + comm.rank * width, comm).movedim(0, 1).flatten(1)
    order = all_values.sort(dim=1, descending=True, stable=True).indices[:, : max(counts)]
    result = []
    for count, row_ids, row_values in zip(
        counts, all_ids.gather(1, order), all_values.gather(1, order) - normalisers[:, None], strict=True
    ):
        real = min(count, int(row_values.isfinite().sum()))  # a padded vocabulary ends in -inf
        result.append((tuple(row_ids[:real].tolist()), tuple(row_values[:real].tolist())))
    return tuple(result)


def _highest(row: Tensor, count: int) -> Tensor:
    """Columns of the ``count`` highest, the highest first and the lowest columns of equals; [count] int64."""
    least = row.topk(count).values[-1]
    above = (row > least).nonzero()[:, 0]  # fewer than ``count``
    above = above[row[above].sort(descending=True, stable=True).indices]
    return torch.cat((above, (row == least).nonzero()[: count - len(above), 0]))


def token_logits(local_logits: Tensor, token_ids: Tensor, comm: Gatherer) -> Tensor:
    """Raw logits of given tokens, [m] float64."""
    width = local_logits.shape[1]
    local = token_ids - comm.rank * width
    own = (local >= 0) & (local < width)
    chosen = local_logits.gather(1, local.clamp(0, width - 1)[:, None])[:, 0].to(torch.float64)
    return gather(chosen.masked_fill(~own, float("-inf")), comm).amax(0)
