"""Which rank has which expert, and which rank sends which row to them (mixture of experts).

A sparse layer's experts are dealt out over the whole pod, each whole on one rank, and the same in every gear. Shares
may be uneven, and a rank may own none. In the tp gear every rank holds all rows and computes those that its experts
get. In the other gears a row lies on one rank of each sequence group, so on T ranks; exactly one of these sends it out.
"""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.layout import Gear, LayoutError


@dataclass(frozen=True)
class ExpertLayout:
    """Experts over P ranks in expert order; the first ranks own one more where the shares are uneven."""

    experts: int
    ranks: int

    def __post_init__(self) -> None:
        if min(self.experts, self.ranks) < 1:
            raise LayoutError(f"experts and ranks must be positive, got {self.experts} experts, {self.ranks} ranks")

    def owned(self, rank: int) -> range:
        """Experts of a rank, in every gear; empty for the last ranks if there are fewer experts than ranks."""
        share, more = divmod(self.experts, self.ranks)
        first = rank * share + min(rank, more)
        return range(first, first + share + (rank < more))

    def owners(self) -> tuple[int, ...]:
        """The rank of each expert."""
        return tuple(rank for rank in range(self.ranks) for _ in self.owned(rank))


@dataclass(frozen=True)
class Dispatch:
    """Rows that one rank sends to the experts: its part of those that its tensor group holds in common.

    ``width`` rows per member, the last members perhaps fewer, so that parts of equal size can be gathered.
    """

    width: int
    rows: range  # within the rank's shard, without padding

    @staticmethod
    def of(gear: Gear, rank: int, num_tokens: int) -> Dispatch:
        """For a step of ``num_tokens`` tokens; padding rows are at the end of the step and go nowhere."""
        per_shard = gear.padded(num_tokens) // gear.sequence
        filled = min(max(num_tokens - gear.sequence_index(rank) * per_shard, 0), per_shard)
        width = -(-per_shard // gear.tensor)
        first = min(gear.tensor_index(rank) * width, filled)
        return Dispatch(width, range(first, min(first + width, filled)))
