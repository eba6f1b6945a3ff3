"""The pool of KV blocks that all gears share. A block holds ``block_size`` tokens of one layer group, on every rank."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush


class BlockPool:
    """Hands out block numbers and remembers what complete blocks hold.

    A block is free, used (by one or more sequences) or cached: used by nobody, but its content has a key under which
    it can be shared again. An allocation takes free blocks first, the lowest numbers, so that small loads touch little
    memory; then cached ones, the longest unused first.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of one token, got {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks))  # a heap
        self._cached: dict[int, None] = {}  # in the order of their last use
        self._users: dict[int, int] = {}
        self._keys: dict[int, Hashable] = {}
        self._blocks: dict[Hashable, int] = {}

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that an allocation can take: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def users(self) -> dict[int, int]:
        """Used blocks and by how many sequences."""
        return dict(self._users)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_size)

    def is_used(self, block: int) -> bool:
        return block in self._users

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks without content; the caller has checked ``num_available``."""
        assert count <= self.num_available, f"{count} blocks asked, {self.num_available} available"
        while len(self._free) < count:
            self._evict(next(iter(self._cached)))
        taken = [heappop(self._free) for _ in range(count)]
        self._users.update(dict.fromkeys(taken, 1))
        return taken

    def publish(self, block: int, key: Hashable) -> None:
        """From now on a used block can be found by what it holds. The first block under a key stays the one."""
        assert block in self._users, f"block {block} is published but not in use"
        if key not in self._blocks and block not in self._keys:
            self._blocks[key] = block
            self._keys[block] = key

    def lookup(self, key: Hashable) -> int | None:
        """The block that holds this, used or cached."""
        return self._blocks.get(key)

    def share(self, blocks: list[int]) -> None:
        """Use published blocks once more."""
        for block in blocks:
            assert block in self._keys, f"block {block} is shared but not published"
            self._cached.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1

    def release(self, blocks: list[int]) -> None:
        """Give blocks back; of those the last is evicted last. A block that is not in use is a broken invariant."""
        for block in blocks:
            assert block in self._users, f"block {block} is released but not in use"
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._keys:
                self._cached[block] = None
            else:
                heappush(self._free, block)

    def clear_cache(self) -> None:
        """Forget what unused blocks hold: something else is about to be written to them."""
        for block in list(self._cached):
            self._evict(block)

    def check(self) -> None:
        """Integrity: every block is free, cached or used, once."""
        free, cached, used = set(self._free), set(self._cached), set(self._users)
        assert len(self._free) + len(cached) + len(used) == self.num_blocks, (
            "free + cached + used differ from the total"
        )
        assert len(free) == len(self._free), "a block is free twice"
        assert len(free | cached | used) == self.num_blocks, "a block is in two states"
        assert all(users > 0 for users in self._users.values()), "a used block has no user"
        assert cached <= self._keys.keys() <= cached | used, "a cached block has no key, or a free one has"
        assert {block: key for key, block in self._blocks.items()} == self._keys, "keys and blocks do not match"

    def _evict(self, block: int) -> None:
        del self._cached[block]
        del self._blocks[self._keys.pop(block)]
        heappush(self._free, block)
