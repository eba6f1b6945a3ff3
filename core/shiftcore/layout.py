"""Which rank owns what in every gear of one pod (paper: arXiv 2509.16495, section 3).

Ranks are numbered in head order. For a gear (S, T) with S*T = P, rank r has the sequence index s = r mod S and the
tensor index t = r div S: sequence groups are consecutive blocks of S ranks, tensor groups are strided by S. With this
numbering rank r owns the same query heads and the same kv heads in *every* gear, so that one KV cache serves all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_GEAR_NAME = re.compile(r"(?:sp([1-9]\d*))?(?:tp([1-9]\d*))?")


class LayoutError(ValueError):
    """A model cannot be laid out over the ranks, or a gear does not exist; the message has the numbers."""


@dataclass(frozen=True, order=True)
class Gear:
    """A layout of P = sequence * tensor ranks."""

    sequence: int
    tensor: int

    def __post_init__(self) -> None:
        if self.sequence < 1 or self.tensor < 1:
            raise LayoutError(f"gear degrees must be positive, got sequence={self.sequence}, tensor={self.tensor}")

    @property
    def ranks(self) -> int:
        return self.sequence * self.tensor

    @property
    def name(self) -> str:
        """``tp8``, ``sp8`` or ``sp4tp2``; one rank alone is ``tp1``."""
        if self.sequence == 1:
            return f"tp{self.tensor}"
        return f"sp{self.sequence}" + (f"tp{self.tensor}" if self.tensor > 1 else "")

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def parse(name: str) -> Gear:
        """Read a name such as ``sp4tp2``; raises LayoutError."""
        match = _GEAR_NAME.fullmatch(name)
        if not name or match is None:
            raise LayoutError(f"{name!r} is no gear; write tpN, spN or spNtpM, for example sp4tp2")
        return Gear(int(match[1] or 1), int(match[2] or 1))

    def padded(self, tokens: int) -> int:
        """Rows of a step with ``tokens`` tokens: the next multiple of the sequence degree."""
        return -(-tokens // self.sequence) * self.sequence

    def sequence_index(self, rank: int) -> int:
        return rank % self.sequence

    def tensor_index(self, rank: int) -> int:
        return rank // self.sequence

    def sequence_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that share this rank's heads and split its rows; consecutive, in order of the sequence index."""
        first = self.tensor_index(rank) * self.sequence
        return tuple(range(first, first + self.sequence))

    def tensor_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that hold the same rows and split heads and FFN; strided, in order of the tensor index."""
        return tuple(range(self.sequence_index(rank), self.ranks, self.sequence))


def base_gear(gpus: int, sequence: int | None = None, tensor: int | None = None) -> Gear:
    """The base gear of a pod from what a person sets of its degrees; pure sequence parallelism where nothing is.

    Raises LayoutError where their product is not ``gpus``.
    """
    if sequence is None:
        sequence = gpus // (tensor or 1)
    if tensor is None:
        tensor = gpus // max(1, sequence)
    if sequence * tensor != gpus:
        raise LayoutError(
            f"sequence {sequence} × tensor {tensor} = {sequence * tensor}, but gpus is {gpus}; "
            "the product must equal gpus, or leave one of them out"
        )
    return Gear(sequence, tensor)


def tp_gear(ranks: int) -> Gear:
    """The gear of lowest latency (paper: shift config)."""
    return Gear(1, ranks)


def allowed_gears(base: Gear) -> tuple[Gear, ...]:
    """All gears that can shift with ``base`` on one copy of the weights, from tp to base.

    A gear's shard must be a view of the base shard, so its tensor degree is a multiple of the base's.
    """
    P = base.ranks
    return tuple(Gear(P // T, T) for T in range(P, base.tensor - 1, -1) if P % T == 0 and T % base.tensor == 0)


@dataclass(frozen=True)
class HeadLayout:
    """Attention heads over P ranks; refuses at birth what cannot be laid out."""

    query_heads: int
    kv_heads: int
    ranks: int

    def __post_init__(self) -> None:
        hq, hkv, P = self.query_heads, self.kv_heads, self.ranks
        if min(hq, hkv, P) < 1:
            raise LayoutError(f"heads and ranks must be positive, got {hq} query heads, {hkv} kv heads, {P} ranks")
        if hq % hkv:
            raise LayoutError(f"{hq} query heads are no multiple of {hkv} kv heads")
        if hq % P:
            raise LayoutError(f"{hq} query heads do not divide over {P} ranks; choose a divisor of {hq}")
        if hkv % P and P % hkv:
            raise LayoutError(f"{hkv} kv heads neither divide over {P} ranks nor replicate evenly on them")

    def query_range(self, rank: int) -> range:
        """Query heads of a rank, in every gear."""
        width = self.query_heads // self.ranks
        return range(rank * width, (rank + 1) * width)

    def kv_range(self, rank: int) -> range:
        """kv heads whose cache a rank holds, in every gear; a head is replicated where ranks > kv_heads."""
        hkv, P = self.kv_heads, self.ranks
        if hkv >= P:
            return range(rank * hkv // P, (rank + 1) * hkv // P)
        head = rank * hkv // P
        return range(head, head + 1)

    def projected_query_range(self, gear: Gear, rank: int) -> range:
        """Query heads that a rank projects for its rows, before the all-to-all."""
        width = self.query_heads // gear.tensor
        t = gear.tensor_index(rank)
        return range(t * width, (t + 1) * width)

    def projected_kv_range(self, gear: Gear, rank: int) -> range:
        """kv heads that a rank projects for its rows, before the all-to-all: those its projected query heads read.

        Tensor shares may cut through a kv head's queries (2 kv heads in sp2tp3), so that neighbours project it too.
        """
        queries = self.projected_query_range(gear, rank)
        per_kv = self.query_heads // self.kv_heads
        return range(queries.start // per_kv, (queries.stop - 1) // per_kv + 1)

    def kv_sent_to(self, gear: Gear, destination: int) -> range:
        """Which of the *projected* kv heads (counted from 0) go to a member of the own sequence group.

        With fewer projected heads than members a head goes to several of them.
        """
        owned = self.kv_range(destination)
        first = self.projected_kv_range(gear, destination).start
        return range(owned.start - first, owned.stop - first)


def shard(size: int, parts: int, part: int, what: str) -> range:
    """An even contiguous share of a dimension; raises LayoutError naming ``what``."""
    if size % parts:
        raise LayoutError(f"{what} {size} does not divide over {parts} ranks")
    width = size // parts
    return range(part * width, (part + 1) * width)


def padded_vocabulary(size: int, ranks: int) -> int:
    """Vocabulary rows after padding so that every rank holds equally many."""
    return -(-size // ranks) * ranks
