"""One generation and its pieces, as the scheduler sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from shiftcore.block_tables import SequenceBlocks
from shiftcore.prefix_cache import Tokens


class Finish(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"


class GrowingTokens(Tokens, Protocol):
    """Prompt and output; a list is one. Who has no prefix cache may keep no more than their number."""

    def append(self, token: int, /) -> None: ...

    def extend(self, tokens: Sequence[int], /) -> None: ...


@dataclass(eq=False)
class Request:
    """One generation. ``tokens`` grows by one with every sampled token.

    What follows ``skip_cache_read`` is kept by the scheduler.
    """

    id: str
    prompt: Sequence[int]
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    arrival_seconds: float = 0.0  # on the caller's clock, as the next
    deadline: float | None = None
    tenant: str = ""  # prefixes and fair shares are per tenant
    priority: int = 0  # lower runs first
    waits_for: str = ""  # a request with the same prompt: wait until its prompt is computed, then share its blocks
    cache_salt: str = ""  # a prefix is found only under the salt that it was computed with
    skip_cache_read: bool = False  # every prompt token must be computed, for its log probability
    tokens: GrowingTokens = field(init=False)
    most_tokens: int = field(init=False)  # prompt and output
    scheduled: int = field(init=False, default=0)  # tokens whose KV is computed or being computed
    computed: int = field(init=False, default=0)  # tokens whose KV is there
    foreseen: int = field(init=False, default=0)  # tokens that steps in flight sample: they follow those known
    sequence: SequenceBlocks | None = field(init=False, default=None)  # from admission to the queue until the end
    leader: Request | None = field(init=False, default=None)
    prompt_computed: bool = field(init=False, default=False)  # at least once
    ended: bool = field(init=False, default=False)
    first_scheduled_seconds: float | None = field(init=False, default=None)
    cached_tokens: int = field(init=False, default=0)  # of the prompt, found in the prefix cache
    charged: int = field(init=False, default=0)  # tokens on its tenant's account
    order: int = field(init=False, default=0)  # of arrival

    def __post_init__(self) -> None:
        self.tokens = self._keep(self.prompt)
        self.most_tokens = len(self.prompt) + self.max_tokens

    def _keep(self, prompt: Sequence[int]) -> GrowingTokens:
        """What ``tokens`` begins with."""
        return list(prompt)

    @property
    def cache_scope(self) -> str:
        """Requests of equal scope find each other's prefixes. Names are printable, so the border is no part of one."""
        return f"{self.tenant}\0{self.cache_salt}" if self.cache_salt else self.tenant

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def missing(self) -> int:
        """Tokens, known or foreseen, that no step computes yet; none of a request that is sure to end."""
        known = len(self.tokens) + self.foreseen
        return 0 if self.ended or known >= self.most_tokens else known - self.scheduled

    @property
    def in_flight(self) -> bool:
        return self.scheduled > self.computed

    @property
    def tables(self) -> tuple[list[int], ...]:
        """Blocks per layer group, by position // block_size; block_tables.NO_BLOCK behind a window."""
        return self.sequence.tables if self.sequence else ()

    @property
    def blocks(self) -> list[int]:
        """The table of the first layer group."""
        return self.sequence.tables[0] if self.sequence else []

    @property
    def importance(self) -> tuple[int, int]:
        """Lower is more important."""
        return self.priority, self.order


@dataclass(frozen=True)
class Chunk:
    """Tokens ``start .. start + length`` of a request; ``samples`` if the last of them yields a new token.

    A chunk that was made while its request's last token was foreseen is of that one token (``follows``).
    """

    request: Request
    start: int
    length: int
    samples: bool
    follows: bool = False  # its token is the one that the step before samples

    @property
    def end(self) -> int:
        return self.start + self.length


Batch = tuple[Chunk, ...]
