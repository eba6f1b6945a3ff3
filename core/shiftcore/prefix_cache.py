"""Names for what full KV blocks hold, so that equal prefixes of one tenant share them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, overload

_DIGEST_BYTES = 32  # a collision would show one user the context of another: long enough to be safe against search


class Tokens(Protocol):
    """Any sequence of token ids."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, place: int, /) -> int: ...

    @overload
    def __getitem__(self, place: slice, /) -> Sequence[int]: ...


class PrefixChain:
    """Digests of the full blocks of one sequence. A digest names the block's tokens, all before them and the tenant."""

    def __init__(self, tenant: str, block_size: int) -> None:
        self._block_size = block_size
        self._root = blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
        self._digests: list[bytes] = []

    def digests(self, tokens: Tokens, num_blocks: int) -> list[bytes]:
        """Of the first ``num_blocks`` blocks; ``tokens`` only ever grows between calls."""
        size = self._block_size
        assert num_blocks * size <= len(tokens), f"{len(tokens)} tokens do not fill {num_blocks} blocks of {size}"
        for i in range(len(self._digests), num_blocks):
            parent = self._digests[-1] if self._digests else self._root
            content = array("q", tokens[i * size : (i + 1) * size]).tobytes()
            self._digests.append(blake2b(parent + content, digest_size=_DIGEST_BYTES).digest())
        return self._digests[:num_blocks]
