"""The seam between a model and what carries its tensors from rank to rank.

All ranks execute the same sequence of collectives. A group is a tuple of ranks in the order in which parts are summed
or stacked; it contains the caller. A group of one costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Group = tuple[int, ...]


class CommError(RuntimeError):
    """A collective could not complete; the message names the rank that is behind."""


class Comm(Protocol):
    rank: int
    size: int

    def all_reduce(self, x: Tensor, group: Group) -> Tensor:
        """Sum over the group in group order, so that all members get the same bits. Same shape as ``x``."""
        ...

    def all_gather(self, x: Tensor, group: Group) -> Tensor:
        """``[len(group), *x.shape]``: what each member put in."""
        ...

    def all_to_all(self, x: Tensor, group: Group) -> Tensor:
        """``x[j]`` goes to ``group[j]``; ``out[i]`` is what ``group[i]`` sent here. Both ``[len(group), ...]``."""
        ...

    def all_to_all_v(self, x: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Rows to the ranks that need them: the first ``counts[0]`` rows of ``x [rows, ...]`` go to rank 0, and so on.

        Returns the rows sent here, by rank, and how many each rank sent. Always over all ranks: how many rounds it
        takes depends on the counts, and groups side by side would lose step with each other.
        """
        ...

    def tick(self) -> None:
        """Show that this rank computes; a watchdog ends a group in which no rank does."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...
