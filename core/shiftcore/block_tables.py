"""Which blocks a sequence holds, per layer group: growing, sharing prefixes, and giving back what a window has passed.

Layers are put in groups of equal size, each with the attention window of its layers; a physical block holds the tokens
of one group. Models without sliding layers have one group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from shiftcore.blocks import BlockPool
from shiftcore.prefix_cache import PrefixChain, Tokens

NO_BLOCK = -1  # in a table: behind the window, given back
FULL_ATTENTION: tuple[int | None, ...] = (None,)


def peak_blocks(windows: tuple[int | None, ...], block_size: int, tokens: int, max_chunk_tokens: int) -> int:
    """Blocks that a sequence of so many tokens holds at most at once, over all layer groups.

    A chunk sees the window before its first token, and both ends may lie within a block.
    """
    spans = (
        tokens if window is None else min(tokens, window - 1 + max_chunk_tokens + block_size) for window in windows
    )
    return sum(min(-(-span // block_size), -(-tokens // block_size)) for span in spans)


@dataclass(eq=False)
class SequenceBlocks:
    """The blocks of one sequence; the table of each group is indexed by position // block_size."""

    tables: tuple[list[int], ...]
    chain: PrefixChain
    published: int = 0  # full blocks whose content was offered
    passed: list[int] = field(default_factory=list)  # per group, leading blocks that the window has passed

    def __post_init__(self) -> None:
        self.passed = [0] * len(self.tables)

    @property
    def num_blocks(self) -> int:
        return len(self.tables[0])


@dataclass(frozen=True)
class Hit:
    """The longest cached prefix: its blocks per group, NO_BLOCK where the window does not reach."""

    tables: tuple[list[int], ...]

    @property
    def num_blocks(self) -> int:
        return len(self.tables[0])

    @property
    def blocks(self) -> list[int]:
        """All of them, last positions first: those are evicted first."""
        return [block for table in self.tables for block in reversed(table) if block != NO_BLOCK]


class BlockTables:
    """Moves blocks between the pool and sequences. ``windows``: per layer group, tokens seen or None for all."""

    def __init__(
        self, pool: BlockPool, windows: tuple[int | None, ...], *, prefix_cache: bool, max_chunk_tokens: int
    ) -> None:
        if not windows or any(window is not None and window < 1 for window in windows):
            raise ValueError(f"each layer group needs a window of at least one token or none, got {windows}")
        self.pool = pool
        self.windows = windows
        self.prefix_cache = prefix_cache
        # Whether the number of a sequence's tokens alone decides which blocks it holds.
        self.count_only = not prefix_cache and all(window is None for window in windows)
        self._max_chunk_tokens = max_chunk_tokens

    def new(self, tenant: str) -> SequenceBlocks:
        return SequenceBlocks(tuple([] for _ in self.windows), PrefixChain(tenant, self.pool.block_size))

    def peak(self, tokens: int, held_blocks: int = 0) -> int:
        """Blocks that a sequence of so many tokens takes at most at once, beyond its first ``held_blocks``."""
        more = tokens - held_blocks * self.pool.block_size
        return peak_blocks(self.windows, self.pool.block_size, more, self._max_chunk_tokens)

    def longest(self, max_tokens: int) -> int:
        """Tokens of the longest sequence that the whole pool can hold, at most ``max_tokens``."""
        size = self.pool.block_size
        sizes = range(self.pool.blocks_for(max_tokens) + 1)
        fitting = bisect_right(sizes, self.pool.num_blocks, key=lambda blocks: self.peak(blocks * size)) - 1
        return min(max_tokens, fitting * size)

    def shortage(self, sequence: SequenceBlocks, end: int) -> int:
        """Blocks that are missing to hold positions up to ``end``."""
        return max(0, self.pool.blocks_for(end) - sequence.num_blocks) * len(self.windows)

    def extend(self, sequence: SequenceBlocks, more: int) -> None:
        """Take the blocks of a ``shortage``, of which the caller has checked that they are available."""
        if not more:
            return
        for table in sequence.tables:
            table += self.pool.allocate(more // len(self.windows))

    def turns_with_room(self, holders: Sequence[tuple[SequenceBlocks, int]], limit: int) -> int:
        """How often, at most ``limit`` times, each of these can be extended by a token beyond its end."""
        size, groups = self.pool.block_size, len(self.windows)
        # Tokens that each can take before it needs a block.
        slacks = [sequence.num_blocks * size - end for sequence, end in holders]

        def taken(turns: int) -> int:
            return groups * sum(-(-max(0, turns - slack) // size) for slack in slacks)

        if taken(limit) <= self.pool.num_available:
            return limit
        return bisect_right(range(limit), self.pool.num_available, key=taken) - 1

    def extend_in_turns(self, holders: Sequence[tuple[SequenceBlocks, int]], turns: int) -> None:
        """As ``extend`` of each of these in order by a token beyond its end, so many times over."""
        size, groups = self.pool.block_size, len(self.windows)
        moments = sorted(
            (turn, place)
            for place, (sequence, end) in enumerate(holders)
            for turn in range(sequence.num_blocks * size - end, turns, size)
        )
        blocks = iter(self.pool.allocate(len(moments) * groups))
        for _, place in moments:
            for table in holders[place][0].tables:
                table.append(next(blocks))

    def find(self, sequence: SequenceBlocks, tokens: Tokens) -> Hit:
        """The longest cached prefix that leaves at least one token to compute."""
        limit = (len(tokens) - 1) // self.pool.block_size if self.prefix_cache else 0
        digests = sequence.chain.digests(tokens, limit)
        found: list[list[int | None]] = [[] for _ in self.windows]
        runs = [0] * len(self.windows)  # of each group, found blocks in a row up to here
        best = 0
        for i, digest in enumerate(digests):
            for group, blocks in enumerate(found):
                blocks.append(self.pool.lookup((group, digest)))
                runs[group] = 0 if blocks[i] is None else runs[group] + 1
            firsts = [self._first_seen(window, (i + 1) * self.pool.block_size) for window in self.windows]
            if all(run > i - first for run, first in zip(runs, firsts, strict=True)):
                best = i + 1
            if any(window is None and run <= i for run, window in zip(runs, self.windows, strict=True)):
                break  # no longer prefix can be complete
        return Hit(tuple(self._seen(w, blocks[:best]) for w, blocks in zip(self.windows, found, strict=True)))

    def num_needed_for(self, hit: Hit) -> int:
        """Available blocks that taking the hit would use up: those that nobody uses now."""
        return sum(not self.pool.is_used(block) for block in hit.blocks)

    def take(self, sequence: SequenceBlocks, hit: Hit) -> None:
        """Begin a sequence with a cached prefix."""
        assert sequence.num_blocks == 0, f"a hit for a sequence that holds {sequence.num_blocks} blocks"
        self.pool.share(hit.blocks)
        for table, blocks in zip(sequence.tables, hit.tables, strict=True):
            table += blocks
        sequence.published = hit.num_blocks
        sequence.passed = [blocks.count(NO_BLOCK) for blocks in hit.tables]

    def advance(self, sequence: SequenceBlocks, tokens: Tokens, computed: int) -> None:
        """``computed`` tokens are in the cache: offer full blocks to others, give back what the windows have passed."""
        if self.count_only:
            return
        if self.prefix_cache:
            self._publish(sequence, tokens, min(computed, len(tokens)) // self.pool.block_size)
        for group, window in enumerate(self.windows):
            first = self._first_seen(window, computed)
            table, passed = sequence.tables[group], sequence.passed[group]
            self.pool.release(table[passed:first])
            table[passed:first] = [NO_BLOCK] * len(table[passed:first])
            sequence.passed[group] = max(passed, first)

    def release(self, sequence: SequenceBlocks) -> None:
        """Give all blocks back, the last positions first: a prefix is worth more than what follows it."""
        for table in sequence.tables:
            self.pool.release([block for block in reversed(table) if block != NO_BLOCK])
            table.clear()
        sequence.published = 0
        sequence.passed = [0] * len(self.windows)

    def _publish(self, sequence: SequenceBlocks, tokens: Tokens, full: int) -> None:
        if full <= sequence.published:
            return
        digests = sequence.chain.digests(tokens, full)
        for i in range(sequence.published, full):
            for group, table in enumerate(sequence.tables):
                self.pool.publish(table[i], (group, digests[i]))
        sequence.published = full

    def _first_seen(self, window: int | None, position: int) -> int:
        """The first block that the query at ``position`` and later ones see."""
        return 0 if window is None else max(0, position + 1 - window) // self.pool.block_size

    def _seen(self, window: int | None, blocks: list[int | None]) -> list[int]:
        """Without what lies behind the window of the next token."""
        first = self._first_seen(window, len(blocks) * self.pool.block_size)
        seen = [block for block in blocks[first:] if block is not None]
        return [NO_BLOCK] * (len(blocks) - len(seen)) + seen
