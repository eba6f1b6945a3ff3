"""What a step computes, and the seam to what knows how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftcore.request import Batch

BLOCK_SIZE = 16  # tokens of a block of the cache, in every runtime
CALIBRATION_CONTEXT_TOKENS = 64  # of the decodes that the runtime measures at its start


def prompt_pairs(tokens: int) -> int:
    """Of a token and one before it, in a prompt that is computed from its beginning."""
    return tokens * (tokens - 1) // 2


@dataclass(frozen=True, slots=True)
class Work:
    """What one step computes, as far as its cost depends on it."""

    prefill_tokens: int  # prompt tokens: rows that are not decodes
    prefill_pairs: int  # sum over them of the tokens that each looks back at
    decodes: int  # rows of one token each
    decode_context: int  # tokens that all decodes together look back at
    sampled: int  # rows whose logits are needed
    prefill_context: int = 0  # over chunks of prompts: tokens that were computed before each, read once by all its rows

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decodes


def work_of(batch: Batch) -> Work:
    """A chunk of one token counts as a decode, also where it is the end of a prompt: it is the same work."""
    tokens = pairs = decodes = context = sampled = before = 0
    for chunk in batch:
        length, start = chunk.length, chunk.start
        sampled += chunk.samples
        if length == 1:
            decodes += 1
            context += start
        else:
            tokens += length
            pairs += length * start + prompt_pairs(length)
            before += start
    return Work(tokens, pairs, decodes, context, sampled, before)


def ahead_seconds(seconds: float, engine: tuple[float, float]) -> float:
    """Of a step that was planned while the one before ran, from ``seconds`` and ``engine_seconds`` of an executor: the
    ranks' part, or the engine's where the ranks would have to wait for that."""
    whole, charged = engine
    return max(seconds - charged, whole)


class Executor(Protocol):
    """One engine's hardware: its gears, what steps take in them, and room for the KV cache."""

    @property
    def table(self) -> GearTable:
        """What ``choose`` reads, calibrated as a runtime does it at its start."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""

    def seconds(self, gear: Gear, work: Work) -> float:
        """Of one step that is planned when it begins, the host's part included."""

    def engine_seconds(self, work: Work) -> tuple[float, float]:
        """What the engine's process takes for a step: all of it, and how much of that is in ``seconds``.

        It passes while the step before runs, where steps are planned ahead.
        """

    def decode_seconds(self, gear: Gear, work: Work, steps: int) -> Sequence[float]:
        """Of so many steps in a row in which the same requests decode: ``seconds`` of each, to the last bit.

        ``work`` is that of the first; in each later one every decode looks back at one token more.
        """

    def tokenize_seconds(self, prompt_tokens: int) -> float:
        """From a request's arrival until the engine sees it."""
