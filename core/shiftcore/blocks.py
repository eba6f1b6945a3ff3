"""The pool of KV blocks that all gears share. A block holds ``block_size`` tokens of one sequence, on every rank."""

from __future__ import annotations

from heapq import heappop, heappush


class BlockPool:
    """Hands out block numbers. The lowest free numbers go first, so that small loads touch little memory."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of one token, got {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks))  # a heap
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks; the caller has checked ``num_free``."""
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        taken = [heappop(self._free) for _ in range(count)]
        self._used.update(taken)
        return taken

    def release(self, blocks: list[int]) -> None:
        """Give blocks back. A block that is not in use is a broken invariant."""
        for block in blocks:
            assert block in self._used, f"block {block} is released but not in use"
            self._used.remove(block)
            heappush(self._free, block)

    def check(self) -> None:
        """Integrity: every block is either free or used, once."""
        assert len(self._free) + len(self._used) == self.num_blocks, "free + used blocks differ from the total"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert not self._used.intersection(self._free), "a block is free and used"
