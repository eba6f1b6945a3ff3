"""How one token is to be drawn, as the engine tells the ranks. No torch here: the engine process builds it.

Ranks keep nothing of a row's history between steps, so everything that it decides travels with its step.
"""

from __future__ import annotations

import msgspec

Likeliest = tuple[tuple[int, ...], tuple[float, ...]]  # token ids and their log probabilities, likeliest first


class Penalties(msgspec.Struct, frozen=True):
    """What was said before. Ids are little-endian int32, each id once per field."""

    repetition: float  # over prompt and output
    presence: float  # over the output, as the next
    frequency: float
    prompt_ids: bytes = b""
    output_ids: bytes = b""
    output_counts: bytes = b""  # int32 as well, one per output id


class Sample(msgspec.Struct, frozen=True):
    """One row. Temperature 0 is greedy: then seed and everything that cuts the distribution say nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    position: int = 0  # of the token that is being chosen, in its sequence
    logprob: bool = False  # whether its log probability is wanted; costs a pass over the vocabulary
    top_logprobs: int = 0  # how many of the likeliest tokens are wanted with theirs
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0  # relative to the likeliest token
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits of these ids, each id once
    banned: tuple[int, ...] = ()
    allowed: bytes = b""  # one bit per id, lowest bit first; ids beyond its end are banned; empty allows all
    penalties: Penalties | None = None

    @property
    def edits_logits(self) -> bool:
        """Whether even a greedy choice is not that of the raw logits."""
        return bool(self.allowed or self.banned or self.bias or self.penalties is not None)

    @property
    def cuts(self) -> bool:
        """Whether only a part of the distribution is drawn from."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)
