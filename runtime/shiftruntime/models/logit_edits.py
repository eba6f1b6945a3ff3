"""What changes a row's logits before anything is chosen, also greedily: mask, bans, bias, penalties, in this order.

All of it is elementwise on a rank's own shard, so it does not depend on how the vocabulary is sharded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftruntime.models.sample import Penalties, Sample

Ids = NDArray[np.int64]


def edited(local_logits: Tensor, samples: Sequence[Sample], first_id: int) -> Tensor:
    """local_logits [m, width] of ids [first_id, first_id + width) → an edited copy in float64."""
    logits = local_logits.to(torch.float64, copy=True)
    for row, sample in zip(logits, samples, strict=True):
        if sample.allowed:
            row.masked_fill_(~_bits(sample.allowed, first_id, len(row)), float("-inf"))
        if sample.banned:
            row[_own(np.array(sample.banned, np.int64), first_id, len(row))[0]] = float("-inf")
        if sample.bias:
            ids, own = _own(np.array([i for i, _ in sample.bias], np.int64), first_id, len(row))
            row[ids] += torch.tensor([b for _, b in sample.bias], dtype=torch.float64)[own]
        if sample.penalties is not None:
            _penalise(row, sample.penalties, first_id)
    return logits


def _penalise(row: Tensor, penalties: Penalties, first_id: int) -> None:
    outputs, counts = _int32(penalties.output_ids), _int32(penalties.output_counts)
    if penalties.repetition != 1.0:
        seen, _ = _own(np.union1d(_int32(penalties.prompt_ids), outputs), first_id, len(row))
        logits, factor = row[seen], penalties.repetition
        row[seen] = torch.where(logits > 0, logits / factor, logits * factor)
    if len(outputs):
        ids, own = _own(outputs, first_id, len(row))
        row[ids] -= torch.from_numpy(counts)[own].to(row.dtype) * penalties.frequency
        row[ids] -= penalties.presence


def _own(ids: Ids, first_id: int, width: int) -> tuple[Tensor, Tensor]:
    """(columns of those ids that lie on this shard, which of the ids they are)."""
    columns = ids - first_id
    own = (columns >= 0) & (columns < width)
    return torch.from_numpy(columns[own]), torch.from_numpy(own)


def _bits(packed: bytes, first: int, count: int) -> Tensor:
    """Bits [first, first + count), [count] bool; those beyond the end are 0."""
    skipped = first // 8
    some = np.frombuffer(packed, np.uint8)[skipped : -(-(first + count) // 8)]
    bits = np.unpackbits(some, bitorder="little")[first - 8 * skipped :][:count]
    return torch.from_numpy(np.pad(bits, (0, count - len(bits)))).to(torch.bool)


def _int32(packed: bytes) -> Ids:
    return np.frombuffer(packed, "<i4").astype(np.int64)
