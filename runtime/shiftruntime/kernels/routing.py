"""Which rows go to which experts: what both arithmetics share, because it compares and sorts but never rounds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def largest(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[rows, experts] → ids of the ``count`` largest per row in ascending order, and their values, [rows, count].

    Of equal ones the lowest ids win: a stable sort keeps their order, ``topk`` promises none.
    """
    order = probabilities.sort(dim=-1, descending=True, stable=True).indices
    ids = order[:, :count].sort(dim=-1).values
    return ids, probabilities.gather(1, ids)


def assigned(ids: Tensor, first: int, experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """ids [rows, per token] → for each of the experts [first, first + experts) that got rows: its index from
    ``first``, the rows in ascending order, and its place among the row's experts."""
    rows, places = ((ids >= first) & (ids < first + experts)).nonzero(as_tuple=True)
    local = ids[rows, places] - first
    order = local.argsort(stable=True)
    counts = torch.bincount(local, minlength=experts).tolist()
    parts = zip(torch.split(rows[order], counts), torch.split(places[order], counts), strict=True)
    for expert, (some_rows, some_places) in enumerate(parts):
        if len(some_rows):
            yield expert, some_rows, some_places
