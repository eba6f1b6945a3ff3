"""What the next step computes: a mixed batch under a token budget.

A request has no phases. It has tokens it knows (prompt and output) and tokens whose KV is computed; a step computes
some of the difference. One token of difference is a decode, more is a prefill, which may be cut in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.block_tables import FULL_ATTENTION, BlockTables, Hit
from shiftcore.blocks import BlockPool
from shiftcore.fairness import TenantShares
from shiftcore.limits import DeadlinePassedError as DeadlinePassedError
from shiftcore.limits import DuplicateRequestError as DuplicateRequestError
from shiftcore.limits import Limits as Limits
from shiftcore.limits import NeverFitsError as NeverFitsError
from shiftcore.limits import QueueFullError as QueueFullError
from shiftcore.request import Batch as Batch
from shiftcore.request import Chunk as Chunk
from shiftcore.request import Finish as Finish
from shiftcore.request import Request as Request
from shiftcore.waiting import Waiting


@dataclass
class Counts:
    """Since the start."""

    preemptions: int = 0
    queried_tokens: int = 0  # tokens of admitted requests that were looked up in the prefix cache
    hit_tokens: int = 0  # of these, found


class Scheduler:
    """Decodes before prefills; the waiting by priority, then fair shares of the tenants, then arrival; preemption by
    recompute of the least important when blocks run out.

    Between ``schedule`` and ``complete`` a batch is in flight: requests may be added or aborted meanwhile, and the
    blocks of one that ends then are free when the last step with it ends, not before. Another batch may be scheduled
    behind it: one step ahead, nobody is preempted, and requests go on with the tokens that the step in flight samples
    (``Chunk.follows``); what they compute for a request that ends before is dropped. Times are on the caller's clock.
    ``windows``: attention window per layer group (see block_tables); ``tables`` of a request has one table for each.
    """

    def __init__(self, limits: Limits, pool: BlockPool, windows: tuple[int | None, ...] = FULL_ATTENTION) -> None:
        self.limits = limits
        self.pool = pool
        self.counts = Counts()
        self.running: list[Request] = []
        self._tables = BlockTables(
            pool, windows, prefix_cache=limits.prefix_cache, max_chunk_tokens=limits.max_batched_tokens
        )
        self._longest = self._tables.longest(limits.max_model_len)
        self._shares = TenantShares()
        self.waiting = Waiting(self._shares)
        self._by_id: dict[str, Request] = {}
        self._in_flight: Batch = ()
        self._ahead: Batch = ()  # the step behind it
        self._expired: list[Request] = []
        self._num_timed = 0  # requests here that have a deadline
        self._arrivals = 0

    def add(self, request: Request) -> None:
        """Queue a request; raises QueueFullError, NeverFitsError, DuplicateRequestError or DeadlinePassedError."""
        self._check(request)
        self._arrivals += 1
        request.order = self._arrivals
        request.leader = self._by_id.get(request.waits_for)
        request.sequence = self._tables.new(request.cache_scope)
        self._by_id[request.id] = request
        self._num_timed += request.deadline is not None
        self.waiting.add(request)

    def find(self, request_id: str) -> Request | None:
        """The request that is in flight under this id."""
        return self._by_id.get(request_id)

    def abort(self, request_id: str) -> bool:
        """End a request; False if it is not in flight. Its blocks are free when no step in flight has it."""
        request = self.find(request_id)
        if request is None:
            return False
        self._end(request)
        return True

    def schedule(self, now: float = 0.0, budget: int | None = None) -> Batch:
        """The next batch, after ending what is past its deadline (``take_expired``); empty when nothing can run.

        It has at most ``budget`` tokens, never more than the limits allow. With a step in flight it is also empty when
        the blocks are short: that step may bring some back, and what it computes is worth more than to be preempted.
        """
        assert not self._ahead, "two steps are in flight"
        ahead = bool(self._in_flight)
        self._expire(now)
        largest = self.limits.max_batched_tokens
        step = _Step(largest if budget is None else min(budget, largest))
        # Decodes first: a long prompt must not make those who already read wait.
        for request in sorted(self.running, key=lambda r: (r.missing > 1, r.priority, r.order)):
            if step.preempted and request not in self.running:
                continue  # it gave way to a more important one
            if step.budget and not self._continue(request, step, may_preempt=not ahead):
                return ()
        while step.budget and not step.preempted and len(self.running) < self.limits.max_num_seqs:
            if not self._admit(step, now):
                break
        batch = tuple(self._chunk(request, length) for request, length in step.lengths.items())
        if ahead:
            self._ahead = batch
        else:
            self._in_flight = batch
        return batch

    def complete(self, sampled: dict[str, int]) -> list[tuple[Request, int, Finish | None]]:
        """End the step in flight, the first of two: ``sampled`` has the new token of each request whose chunk samples.

        Returns (request, new token, finish or None) in batch order, without requests that ended meanwhile.
        """
        outputs: list[tuple[Request, int, Finish | None]] = []
        for chunk in self._in_flight:
            request = chunk.request
            assert request.sequence is not None, f"request {request.id} computes without blocks"
            request.computed = chunk.end
            request.foreseen -= chunk.samples
            request.prompt_computed = request.prompt_computed or request.computed >= len(request.prompt)
            self._tables.advance(request.sequence, request.tokens, request.computed)
            if request.ended:
                if not request.in_flight:
                    self._leave(request)
            elif chunk.samples:
                token = sampled[request.id]
                request.tokens.append(token)
                finish = _finish(request, token)
                if finish is not None:
                    self._end(request)
                outputs.append((request, token, finish))
        self._in_flight, self._ahead = self._ahead, ()
        return outputs

    def take_expired(self) -> list[Request]:
        """Requests that the last ``schedule`` ended for their deadline; each is returned once."""
        expired, self._expired = self._expired, []
        return expired

    def clear_cache(self) -> None:
        """Forget all cached prefixes: somebody else writes to the blocks. Only while no request is here."""
        assert not self._by_id, f"{len(self._by_id)} requests are here"
        self.pool.clear_cache()

    def check_idle(self) -> None:
        """Integrity without requests: every block is free or cached, and nobody is forgotten."""
        assert not [*self.running, *self.waiting, *self._by_id], "requests are here"
        self.pool.check()
        used = self.pool.num_blocks - self.pool.num_available
        assert not used, f"idle with {used} blocks in use"

    def oldest_wait(self, now: float) -> float:
        """Seconds that somebody has waited for a first step; who was preempted has begun long ago."""
        return max((now - r.arrival_seconds for r in self.waiting if r.first_scheduled_seconds is None), default=0.0)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens that no step has computed yet."""
        return sum(r.missing for r in self.waiting) + sum(r.missing for r in self.running if r.missing > 1)

    # --- one request --------------------------------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        if request.id in self._by_id:
            raise DuplicateRequestError(f"request {request.id} is in flight")
        if not request.prompt or request.max_tokens < 1:
            raise NeverFitsError("a request needs at least one prompt token and one token to generate")
        if request.most_tokens > self._longest:
            raise NeverFitsError(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} to generate exceed the {self._longest} "
                "tokens that a sequence can have here"
            )
        if request.deadline is not None and request.deadline <= request.arrival_seconds:
            late = request.arrival_seconds - request.deadline
            raise DeadlinePassedError(f"the deadline passed {late:g} s before the request arrived; allow more time")
        if len(self.waiting) >= self.limits.max_waiting_requests:
            raise QueueFullError(f"{len(self.waiting)} requests wait, the limit is {self.limits.max_waiting_requests}")

    def _expire(self, now: float) -> None:
        if not self._num_timed:
            return
        for request in [*self.running, *self.waiting]:
            if request.deadline is not None and request.deadline <= now and not request.ended:
                self._end(request)
                self._expired.append(request)

    def _end(self, request: Request) -> None:
        """Forget a request; one in flight keeps its blocks until its steps are complete."""
        request.ended = True
        del self._by_id[request.id]
        self._num_timed -= request.deadline is not None
        if not request.in_flight:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        assert request.sequence is not None, f"request {request.id} leaves twice"
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._tables.release(request.sequence)
        request.sequence = None
        request.leader = None
        if not self._by_id and not self.running:
            self._shares.reset()

    # --- one step -----------------------------------------------------------------------------------------------------

    def _continue(self, request: Request, step: _Step, *, may_preempt: bool) -> bool:
        """Give a running request its share of the step, with blocks from less important ones if need be and allowed."""
        assert request.sequence is not None, f"request {request.id} runs without blocks"
        while True:
            length = min(request.missing, step.budget)
            if not length:
                return True  # it only waits for its end
            more = self._tables.shortage(request.sequence, request.scheduled + length)
            if more <= self.pool.num_available:
                break
            if not may_preempt:
                return False
            victim = max(self.running, key=lambda r: r.importance)
            self._preempt(victim, step)
            if victim is request:
                return True
        self._tables.extend(request.sequence, more)
        step.add(request, length)
        return True

    def _preempt(self, request: Request, step: _Step) -> None:
        """Give up a request's KV and let it wait; its tokens are kept and recomputed."""
        assert request.sequence is not None, f"request {request.id} runs without blocks"
        assert not request.in_flight, f"request {request.id} is preempted under a step in flight"
        step.remove(request)
        self.running.remove(request)
        self._tables.release(request.sequence)
        request.scheduled = request.computed = 0
        self.waiting.add(request)
        self.counts.preemptions += 1

    def _admit(self, step: _Step, now: float) -> bool:
        """Begin the waiting request whose turn it is; False if there is none or it has no room.

        It takes available blocks only, all it needs to begin decoding; it preempts nobody, and nobody overtakes it.
        """
        request = self.waiting.first(self._may_begin)
        if request is None:
            return False
        assert request.sequence is not None, f"request {request.id} waits without a table"
        nothing = request.tokens[:1]  # the last token is never looked up
        hit = self._tables.find(request.sequence, nothing if request.skip_cache_read else request.tokens)
        if self.running and not self._has_room(request, hit):
            return False
        self.waiting.remove(request)
        self.running.append(request)
        self._take(request, hit, now)
        length = min(request.missing, step.budget)
        self._tables.extend(request.sequence, self._tables.shortage(request.sequence, request.scheduled + length))
        step.add(request, length)
        return True

    def _has_room(self, request: Request, hit: Hit) -> bool:
        room = self.pool.num_available - self._tables.num_needed_for(hit)
        return self._tables.peak(len(request.tokens) + 1, hit.num_blocks) <= room

    def _may_begin(self, request: Request) -> bool:
        """A sibling waits for its leader's prompt, unless there is nothing to share."""
        leader = request.leader
        shares = self.limits.prefix_cache and len(request.prompt) > self.pool.block_size
        return leader is None or leader.ended or leader.prompt_computed or not shares

    def _take(self, request: Request, hit: Hit, now: float) -> None:
        assert request.sequence is not None, f"request {request.id} begins without a table"
        self._tables.take(request.sequence, hit)
        tokens = hit.num_blocks * self.pool.block_size
        request.scheduled = request.computed = tokens
        if request.first_scheduled_seconds is not None:
            return
        request.first_scheduled_seconds = now
        request.cached_tokens = request.charged = tokens
        if self.limits.prefix_cache and not request.skip_cache_read:
            self.counts.queried_tokens += len(request.tokens)
            self.counts.hit_tokens += tokens

    def _chunk(self, request: Request, length: int) -> Chunk:
        start, known = request.scheduled, len(request.tokens)
        chunk = Chunk(request, start, length, start + length == known + request.foreseen, follows=start >= known)
        request.scheduled = chunk.end
        request.foreseen += chunk.samples
        self._charge(request)
        return chunk

    def _charge(self, request: Request) -> None:
        """What is computed again after a preemption is not the tenant's fault."""
        more = request.scheduled - request.charged
        if more > 0:
            self._shares.charge(request.tenant, more)
            request.charged = request.scheduled


class _Step:
    """A batch in the making: until it is done, a preemption may take a request out again."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.lengths: dict[Request, int] = {}
        self.preempted = False

    def add(self, request: Request, length: int) -> None:
        self.lengths[request] = length
        self.budget -= length

    def remove(self, request: Request) -> None:
        self.budget += self.lengths.pop(request, 0)
        self.preempted = True


def _finish(request: Request, token: int) -> Finish | None:
    if token in request.stop_token_ids:
        return Finish.STOP
    return Finish.LENGTH if len(request.tokens) >= request.most_tokens else None
