"""Requests that can never run, and why."""

from __future__ import annotations

MOST_REASONS = 10  # each names two lengths


class Refusals:
    """How many, by the sentence that a client would read; of these there are not many."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, sentence: str) -> None:
        known = sentence in self.counts or len(self.counts) < MOST_REASONS
        kind = sentence if known else "of other lengths"
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """The first reason stands for those like it."""
        if not self.counts:
            return "none refused"
        sentence, requests = next(iter(self.counts.items()))
        more = f" and {len(self) - requests:,} for a like reason" if len(self) > requests else ""
        return f"{requests:,} refused, {sentence}{more}"
