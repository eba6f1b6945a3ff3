"""What the next step computes: a mixed batch under a token budget.

A request has no phases. It has tokens it knows (prompt and output) and tokens whose KV is computed; a step computes
some of the difference. One token of difference is a decode, more is a prefill, which may be cut in chunks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from shiftcore.blocks import BlockPool


class QueueFullError(Exception):
    """No room to wait; the message has the limit."""


class NeverFitsError(ValueError):
    """The request can never run here; the message has the limit."""


class DuplicateRequestError(ValueError):
    """A request with this id is in flight."""


class Finish(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"


@dataclass(frozen=True)
class Limits:
    """What bounds a step and the queue. ``max_num_seqs`` need not divide by anything: steps are padded."""

    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    max_waiting_requests: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(eq=False)
class Request:
    """One generation. ``tokens`` grows by one with every sampled token."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    arrival_seconds: float = 0.0  # on the caller's clock
    tokens: list[int] = field(init=False)
    computed: int = field(init=False, default=0)
    blocks: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Chunk:
    """Tokens ``start .. start + length`` of a request; ``samples`` if the last of them yields a new token."""

    request: Request
    start: int
    length: int

    @property
    def samples(self) -> bool:
        return self.start + self.length == len(self.request.tokens)


Batch = tuple[Chunk, ...]


class Scheduler:
    """First come, first served; decodes before prefills; preemption by recompute when blocks run out.

    Between ``schedule`` and ``complete`` a batch is in flight: requests may be added or aborted meanwhile, and the
    blocks of an aborted request are free when the step ends, not before.
    """

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        self.limits = limits
        self.pool = pool
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self._in_flight: Batch = ()
        self._aborted: set[Request] = set()

    def add(self, request: Request) -> None:
        """Queue a request; raises QueueFullError, NeverFitsError or DuplicateRequestError."""
        if self.find(request.id) is not None:
            raise DuplicateRequestError(f"request {request.id} is in flight")
        longest = min(self.limits.max_model_len, self.pool.num_blocks * self.pool.block_size)
        total = len(request.prompt) + request.max_tokens
        if not request.prompt or request.max_tokens < 1:
            raise NeverFitsError("a request needs at least one prompt token and one token to generate")
        if total > longest:
            raise NeverFitsError(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} to generate exceed the {longest} "
                "tokens that a sequence can have here"
            )
        if len(self.waiting) >= self.limits.max_waiting_requests:
            raise QueueFullError(f"{len(self.waiting)} requests wait, the limit is {self.limits.max_waiting_requests}")
        self.waiting.append(request)

    def find(self, request_id: str) -> Request | None:
        """The request that is in flight under this id."""
        requests = (*self.running, *self.waiting)
        return next((r for r in requests if r.id == request_id and r not in self._aborted), None)

    def abort(self, request_id: str) -> bool:
        """End a request; False if it is not in flight. Its blocks are free when the step in flight ends."""
        request = self.find(request_id)
        if request is None:
            return False
        if any(chunk.request is request for chunk in self._in_flight):
            self._aborted.add(request)
        else:
            self._remove(request)
        return True

    def schedule(self) -> Batch:
        """The next batch; empty when nothing can run."""
        assert not self._in_flight, "a step is in flight"
        budget = self.limits.max_batched_tokens
        chunks: list[Chunk] = []
        # Decodes first: a long prompt must not make those who already read wait.
        for request in sorted(self.running, key=lambda r: r.missing > 1):
            if budget == 0:
                break
            if request not in self.running:  # preempted for the sake of an earlier one
                continue
            length = min(request.missing, budget)
            if self._make_room(request, length, chunks):
                chunks.append(Chunk(request, request.computed, length))
                budget -= length
        while self.waiting and budget and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            length = min(request.missing, budget)
            # A newcomer takes free blocks only, all it needs to begin decoding; it preempts nobody.
            if self.pool.blocks_for(len(request.tokens) + 1) > self.pool.num_free and self.running:
                break
            if self._shortage(request, length) > self.pool.num_free:
                break
            self.waiting.popleft()
            self.running.append(request)
            self._extend(request, length)
            chunks.append(Chunk(request, request.computed, length))
            budget -= length
        self._in_flight = tuple(chunks)
        return self._in_flight

    def complete(self, sampled: dict[str, int]) -> list[tuple[Request, int, Finish | None]]:
        """End the step in flight: ``sampled`` has the new token of each request whose chunk samples.

        Returns (request, new token, finish or None) in batch order, without aborted requests.
        """
        outputs: list[tuple[Request, int, Finish | None]] = []
        for chunk in self._in_flight:
            request = chunk.request
            if request in self._aborted:
                self._aborted.remove(request)
                self._remove(request)
                continue
            samples = chunk.samples
            request.computed += chunk.length
            if not samples:
                continue
            token = sampled[request.id]
            request.tokens.append(token)
            finish = self._finish(request, token)
            if finish is not None:
                self._remove(request)
            outputs.append((request, token, finish))
        self._in_flight = ()
        return outputs

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens that no step has computed yet."""
        return sum(r.missing for r in self.waiting) + sum(r.missing for r in self.running if r.missing > 1)

    def _finish(self, request: Request, token: int) -> Finish | None:
        if token in request.stop_token_ids:
            return Finish.STOP
        return Finish.LENGTH if request.num_output >= request.max_tokens else None

    def _shortage(self, request: Request, length: int) -> int:
        """Blocks that the request lacks to compute ``length`` more tokens."""
        return max(0, self.pool.blocks_for(request.computed + length) - len(request.blocks))

    def _extend(self, request: Request, length: int) -> None:
        request.blocks += self.pool.allocate(self._shortage(request, length))

    def _make_room(self, request: Request, length: int, chunks: list[Chunk]) -> bool:
        """Get the blocks for a running request, from later ones if need be; False if it preempted itself."""
        while self._shortage(request, length) > self.pool.num_free:
            victim = self._victim(chunks)
            if victim is None:
                return False
            self._preempt(victim)
            if victim is request:
                return False
        self._extend(request, length)
        return True

    def _victim(self, chunks: list[Chunk]) -> Request | None:
        """The latest running request that is not part of this step yet."""
        chosen = {chunk.request.id for chunk in chunks}
        return next((r for r in reversed(self.running) if r.id not in chosen), None)

    def _preempt(self, request: Request) -> None:
        """Give up a request's KV and put it back at the head of the queue; its tokens are kept and recomputed."""
        self.running.remove(request)
        self.pool.release(request.blocks)
        request.blocks = []
        request.computed = 0
        self.waiting.appendleft(request)

    def _remove(self, request: Request) -> None:
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self.pool.release(request.blocks)
        request.blocks = []
