"""A small scheduler whose every step is checked, requests for it, and a model of the ranks' KV slots."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from shiftcore.blocks import BlockPool
from shiftcore.scheduler import Batch, Limits, Request, Scheduler

BLOCK_SIZE = 4
STOP = 0


def next_token(tokens: list[int], one_in: int = 11) -> int:
    """A stand-in for the model: the token depends on every token before it. About one in so many stops."""
    value = 7
    for token in tokens:
        value = (31 * value + token + 1) % 1009
    return value % one_in


def generation(prompt: tuple[int, ...], max_tokens: int, one_in: int = 11) -> list[int]:
    """What a request must yield, whatever else runs."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens, one_in))
        if tokens[-1] == STOP:
            break
    return tokens[len(prompt) :]


@dataclass
class Model:
    """KV slots as the ranks see them: slot -> (prefix of tokens it was computed from)."""

    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def run(self, batch: Batch) -> dict[str, int]:
        """Compute a batch; every chunk must find the KV of all tokens before it."""
        sampled = {}
        for chunk in batch:
            request, end = chunk.request, chunk.start + chunk.length
            assert len(request.blocks) * BLOCK_SIZE >= end, "the chunk's KV is not covered by its blocks"
            slots = [request.blocks[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(end)]
            for i in range(chunk.start, end):
                self.slots[slots[i]] = tuple(request.tokens[: i + 1])
            for i in range(end):
                assert self.slots.get(slots[i]) == tuple(request.tokens[: i + 1]), f"KV of token {i} is not there"
            if chunk.samples:
                sampled[request.id] = next_token(list(request.tokens[:]))
        return sampled


def check_batch(scheduler: Scheduler, batch: Batch) -> None:
    limits = scheduler.limits
    assert sum(chunk.length for chunk in batch) <= limits.max_batched_tokens
    assert all(chunk.length >= 1 for chunk in batch)
    assert len(scheduler.running) <= limits.max_num_seqs
    assert len({id(chunk.request) for chunk in batch}) == len(batch), "a request twice in a step"
    assert all(chunk.request in scheduler.running for chunk in batch)


def check_blocks(scheduler: Scheduler) -> None:
    scheduler.pool.check()
    users = Counter(block for r in scheduler.running for block in r.blocks)
    assert users == scheduler.pool.users
    assert all(not r.blocks and r.computed == 0 for r in scheduler.waiting)


def make(
    blocks: int = 64, *, seqs: int = 8, budget: int = 32, length: int = 200, waiting: int = 50, cache: bool = True,
) -> Scheduler:  # fmt: skip
    return Scheduler(Limits(seqs, budget, length, waiting, cache), BlockPool(blocks, BLOCK_SIZE))


def step(scheduler: Scheduler, token: int = 5, now: float = 0.0) -> list[str]:
    """One step; the names of the chunks in order, with their lengths."""
    batch = scheduler.schedule(now)
    check_batch(scheduler, batch)
    scheduler.complete({chunk.request.id: token for chunk in batch if chunk.samples})
    check_blocks(scheduler)
    return [f"{chunk.request.id}:{chunk.length}" for chunk in batch]


def request(name: str, prompt: int = 4, max_tokens: int = 8, **more: Any) -> Request:
    """Its prompt is shared with nobody of another name."""
    return Request(name, (hash_of(name), *range(1, prompt)), max_tokens, **more)


def hash_of(name: str) -> int:
    return 1000 + int.from_bytes(name.encode(), "big")
