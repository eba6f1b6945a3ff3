"""Scheduler, blocks, prefix cache and gears against a model of the ranks' KV caches, under random traffic.

The model computes every step as the ranks would, in the gear chosen for it: it writes what each KV slot holds, and
reads for every token the whole context that its layers see. A block that is reused too early, shared with other
content, shared between tenants or given back while a window still reaches it shows as a wrong prefix in a slot.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shiftcore.block_tables import NO_BLOCK
from shiftcore.blocks import BlockPool
from shiftcore.gears import GearTable, choose
from shiftcore.layout import Gear, HeadLayout
from shiftcore.policy import Mode, Policy
from shiftcore.scheduler import (
    Batch,
    Chunk,
    DeadlinePassedError,
    DuplicateRequestError,
    Finish,
    Limits,
    NeverFitsError,
    QueueFullError,
    Request,
    Scheduler,
)

from .scheduling import STOP, generation, next_token

CAMPAIGN = int(os.environ.get("SHIFT_CAMPAIGN", "0"))  # examples
pytestmark = pytest.mark.timeout(7200 if CAMPAIGN else 120)

BLOCK_SIZE = 4
MAX_MODEL_LEN = 32
ONE_IN = 23  # tokens stops
NAMES = "abcdefgh"
TENANTS = ("", "x", "y")
WINDOWS: tuple[tuple[int | None, ...], ...] = ((None,), (None, 5), (9,), (3, None, 3), (1, 12))
# Query heads, kv heads, base gear: kv heads split, replicated, and cut by the tensor shares.
LAYOUTS = ((4, 4, Gear(2, 1)), (4, 2, Gear(4, 1)), (6, 2, Gear(6, 1)), (8, 1, Gear(2, 2)), (1, 1, Gear(1, 1)))
# Few beginnings, so that prefixes meet.
PROMPTS = st.builds(
    lambda length, tail: tuple(range(1, length + 1)) + tuple(tail),
    st.sampled_from((16, 13, 12, 9, 8, 8, 4, 3, 1, 20, 0)),
    st.one_of(st.just([]), st.lists(st.integers(1, 3), max_size=5)),
)


@dataclass(frozen=True)
class Content:
    """What a slot holds: one token's keys and values, which depend on all tokens before it."""

    tenant: str
    prefix: tuple[int, ...]


@dataclass
class Ranks:
    """The KV caches of P ranks: (rank, layer group, slot, kv head) -> content."""

    layout: HeadLayout
    windows: tuple[int | None, ...]
    slots: dict[tuple[int, int, int, int], Content] = field(default_factory=dict)
    drawn: dict[Request, int] = field(default_factory=dict)  # by the last step
    tokens: dict[Request, list[int]] = field(default_factory=dict)  # of the step that runs

    def run(self, gear: Gear, batch: Batch) -> dict[str, int]:
        self.tokens = {chunk.request: self._known(chunk) for chunk in batch}
        rows = [(chunk, position) for chunk in batch for position in range(chunk.start, chunk.end)]
        for chunk in batch:
            self._read(chunk, 0, chunk.start)  # of earlier steps: none may need what a neighbour computes in this one
        for rank in range(self.layout.ranks):
            self._write(gear, rank, rows)
        for chunk in batch:
            self._read(chunk, chunk.start, chunk.end)
        self.drawn = {chunk.request: next_token(self.tokens[chunk.request], ONE_IN) for chunk in batch if chunk.samples}
        return {request.id: token for request, token in self.drawn.items()}

    def _known(self, chunk: Chunk) -> list[int]:
        """The request's tokens up to the chunk's end; one that follows is the one drawn, whether or not it counts."""
        tokens = list(chunk.request.tokens[:])
        if chunk.follows:
            assert chunk.length == 1
            tokens = [*tokens[: chunk.start], self.drawn[chunk.request]]
        assert len(tokens) >= chunk.end, "a token is computed that nobody knows"
        return tokens

    def content(self, request: Request, position: int) -> Content:
        return Content(request.tenant, tuple(self.tokens[request][: position + 1]))

    def _write(self, gear: Gear, rank: int, rows: list[tuple[Chunk, int]]) -> None:
        """What a rank projects for its own rows goes to its sequence group, each member its own heads."""
        per_rank = gear.padded(len(rows)) // gear.sequence
        first = gear.sequence_index(rank) * per_rank
        projected = self.layout.projected_kv_range(gear, rank)
        for chunk, position in rows[first : first + per_rank]:
            content = self.content(chunk.request, position)
            for member in gear.sequence_group(rank):
                for i in self.layout.kv_sent_to(gear, member):
                    for group, table in enumerate(chunk.request.tables):
                        self.slots[member, group, slot(table, position), projected[i]] = content

    def _read(self, chunk: Chunk, start: int, end: int) -> None:
        for rank in range(self.layout.ranks):
            for group, (window, table) in enumerate(zip(self.windows, chunk.request.tables, strict=True)):
                seen = 0 if window is None else chunk.start + 1 - window
                for position in range(max(start, seen), end):
                    for head in self.layout.kv_range(rank):
                        found = self.slots.get((rank, group, slot(table, position), head))
                        assert found == self.content(chunk.request, position), (
                            f"rank {rank}, group {group}, head {head}: KV of token {position} is {found}"
                        )


def slot(table: list[int], position: int) -> int:
    block = table[position // BLOCK_SIZE]
    assert block != NO_BLOCK, f"the block of token {position} was given back"
    return block * BLOCK_SIZE + position % BLOCK_SIZE


class Traffic(RuleBasedStateMachine):
    """Requests come, run, meet deadlines and are aborted at any moment, also while one or two steps are in flight."""

    @initialize(
        max_num_seqs=st.sampled_from((3, 5, 2, 1)),
        budget=st.sampled_from((16, 24, 8, 5, 3, 1)),
        waiting=st.sampled_from((8, 4, 2, 1)),
        blocks=st.sampled_from((6, 7, 8, 12, 3)),  # per layer group
        windows=st.sampled_from(WINDOWS),
        layout=st.sampled_from(LAYOUTS),
        prefix_cache=st.sampled_from((True, True, True, False)),
    )
    def begin(
        self, max_num_seqs: int, budget: int, waiting: int, blocks: int, windows: tuple[int | None, ...],
        layout: tuple[int, int, Gear], prefix_cache: bool,
    ) -> None:  # fmt: skip
        self.limits = Limits(max_num_seqs, budget, MAX_MODEL_LEN, waiting, prefix_cache)
        self.scheduler = Scheduler(self.limits, BlockPool(blocks * len(windows), BLOCK_SIZE), windows)
        query_heads, kv_heads, base = layout
        self.ranks = Ranks(HeadLayout(query_heads, kv_heads, base.ranks), windows)
        self.gears, self.policy = GearTable(base, {}), Policy(threshold_tokens=6)
        self.now = 0.0
        self.batch: Batch = ()  # in flight
        self.ahead: Batch = ()  # behind it
        self.live: dict[str, Request] = {}
        self.yielded: dict[Request, list[int]] = defaultdict(list)
        self.ended_in_flight: dict[Request, list[list[int]]] = {}
        self.ends: Counter[Request] = Counter()

    @rule(
        name=st.sampled_from(NAMES), prompt=PROMPTS, n=st.sampled_from((12, 8, 5, 2, 1, 0)),
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from((0, 0, 0, 1, -1)), seconds=st.sampled_from((None, None, None, 0.0, 2.0, 9.0)),
        skip_cache_read=st.sampled_from((False, False, False, True)),
    )  # fmt: skip
    def add(
        self, name: str, prompt: tuple[int, ...], n: int, tenant: str, priority: int, seconds: float | None,
        skip_cache_read: bool,
    ) -> None:  # fmt: skip
        deadline = None if seconds is None else self.now + seconds
        self._add(
            Request(
                name, prompt, n, frozenset({STOP}), self.now, deadline, tenant, priority,
                skip_cache_read=skip_cache_read,
            )
        )  # fmt: skip

    @rule(prompts=st.lists(PROMPTS, min_size=2, max_size=6), n=st.integers(8, 16), priority=st.sampled_from((0, 0, 1)))
    def burst(self, prompts: list[tuple[int, ...]], n: int, priority: int) -> None:
        """Long ones of one tenant at once: what small pools cannot hold together."""
        for prompt in prompts:
            name = next(letter for letter in (*NAMES, *map(str, range(20))) if letter not in self.live)
            n = min(n, self.longest // 2)
            self._add(Request(name, prompt[: self.longest - n], n, frozenset({STOP}), self.now, None, "x", priority))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), name=st.sampled_from(NAMES), priority=st.sampled_from((0, 0, 1)))
    def add_sibling(self, data: st.DataObject, name: str, priority: int) -> None:
        leader = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        self._add(
            Request(
                name, leader.prompt, leader.max_tokens, frozenset({STOP}), self.now, None, leader.tenant, priority,
                leader.id,
            )
        )  # fmt: skip

    def _add(self, request: Request) -> None:
        error: type[Exception] | None = None
        total = len(request.prompt) + request.max_tokens
        if request.id in self.live:
            error = DuplicateRequestError
        elif not request.prompt or request.max_tokens < 1 or total > self.longest:
            error = NeverFitsError
        elif request.deadline is not None and request.deadline <= self.now:
            error = DeadlinePassedError
        elif len(self.scheduler.waiting) >= self.limits.max_waiting_requests:
            error = QueueFullError
        if error is not None:
            with pytest.raises(error):
                self.scheduler.add(request)
        else:
            self.scheduler.add(request)
            self.live[request.id] = request

    @property
    def longest(self) -> int:
        """Brute force: grow until the tables do not fit at some moment of the sequence's life."""
        windows, budget = self.ranks.windows, self.limits.max_batched_tokens
        for total in range(1, MAX_MODEL_LEN + 1):
            blocks = -(-total // BLOCK_SIZE)
            spans = [blocks if w is None else min(blocks, -(-(w - 1 + budget) // BLOCK_SIZE) + 1) for w in windows]
            if sum(spans) > self.scheduler.pool.num_blocks:
                return total - 1
        return MAX_MODEL_LEN

    @rule(name=st.sampled_from(NAMES))
    def abort(self, name: str) -> None:
        request = self.live.pop(name, None)
        assert self.scheduler.abort(name) == (request is not None)
        if request is not None:
            self.ends[request] += 1
            self._ended(request)

    def _ended(self, request: Request) -> None:
        """Blocks of a request in flight are kept until the last step with it ends."""
        assert bool(request.tables) == self._flies(request)
        if self._flies(request):
            self.ended_in_flight[request] = [list(table) for table in request.tables]

    def _flies(self, request: Request) -> bool:
        return any(chunk.request is request for chunk in (*self.batch, *self.ahead))

    @rule(seconds=st.sampled_from((0.5, 3.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(policy=st.sampled_from([Policy(Mode.LATENCY), Policy(Mode.THROUGHPUT), Policy(threshold_tokens=6)]))
    def shift(self, policy: Policy) -> None:
        self.policy = policy

    @precondition(lambda self: not self.batch)
    @rule()
    def schedule(self) -> None:
        running, order = set(self.scheduler.running), self._order()
        self.batch = self._schedule()
        self._check_batch(self.batch, running)
        self._check_order(order)
        assert bool(self.batch) == bool(self.live), "something can always run, and nothing runs for nobody"

    @precondition(lambda self: self.batch and not self.ahead)
    @rule()
    def schedule_ahead(self) -> None:
        running, order = set(self.scheduler.running), self._order()
        held = {request: [list(table) for table in request.tables] for request in running}
        preemptions = self.scheduler.counts.preemptions
        self.ahead = self._schedule()
        assert self.scheduler.counts.preemptions == preemptions
        for request, tables in held.items():
            if self._flies(request):
                for table, now in zip(tables, request.tables, strict=True):
                    assert table == now[: len(table)], "a step in flight reads these"
        self._check_batch(self.ahead, running)
        self._check_order(order)
        due = [r for r in self.live.values() if r in running and r.num_output + r.foreseen < r.max_tokens]
        if self.scheduler.pool.num_available >= len(due) * self.limits.max_batched_tokens * len(self.ranks.windows):
            assert bool(self.ahead) >= bool(due), "room for all, and nobody goes on"

    def _schedule(self) -> Batch:
        late = {r for r in self.live.values() if r.deadline is not None and r.deadline <= self.now}
        batch = self.scheduler.schedule(self.now)
        expired = self.scheduler.take_expired()
        assert (set(expired), len(expired)) == (late, len(late)), "exactly the late ones end, once"
        for request in expired:
            self.ends[request] += 1
            del self.live[request.id]
            self._ended(request)
        return batch

    def _order(self) -> dict[tuple[str, int], list[Request]]:
        """The waiting of each tenant and priority in order of arrival."""
        queues: dict[tuple[str, int], list[Request]] = defaultdict(list)
        for request in sorted(self.scheduler.waiting, key=lambda r: r.order):
            queues[request.tenant, request.priority].append(request)
        return queues

    def _check_order(self, queues: dict[tuple[str, int], list[Request]]) -> None:
        for queue in queues.values():
            left = [r in self.scheduler.waiting for r in queue if not r.ended and r.leader is None]
            assert left == sorted(left), "overtaken by a later request of the same tenant and priority"

    def _check_batch(self, batch: Batch, running: set[Request]) -> None:
        limits = self.limits
        assert sum(chunk.length for chunk in batch) <= limits.max_batched_tokens
        assert all(chunk.length >= 1 for chunk in batch)
        assert len(self.scheduler.running) <= limits.max_num_seqs
        assert len({chunk.request for chunk in batch}) == len(batch), "a request twice in a step"
        assert all(chunk.request in self.scheduler.running for chunk in batch)
        assert not any(chunk.request.ended for chunk in batch)
        decodes = [chunk.start + 1 >= len(chunk.request.tokens) for chunk in batch if chunk.request in running]
        assert decodes == sorted(decodes, reverse=True), "a running prefill goes before a decode"
        for chunk in batch:
            request = chunk.request
            assert chunk.samples == (chunk.end >= len(request.tokens))
            assert chunk.follows == (chunk.start >= len(request.tokens))
            if request.cached_tokens:
                assert request.cached_tokens % BLOCK_SIZE == 0
                assert request.cached_tokens < len(request.prompt)
                assert limits.prefix_cache
                assert not request.skip_cache_read

    @precondition(lambda self: self.batch)
    @rule()
    def complete(self) -> None:
        for request, tables in self.ended_in_flight.items():
            for held, table in zip(request.tables, tables, strict=True):
                pairs = zip(held, table, strict=True)
                assert all(now in (then, NO_BLOCK) for now, then in pairs), "freed while the ranks still write to them"
        gear = choose(sum(chunk.length for chunk in self.batch), self.gears, self.policy)
        outputs = self.scheduler.complete(self.ranks.run(gear, self.batch))
        self.batch, self.ahead = self.ahead, ()
        for request in list(self.ended_in_flight):
            assert bool(request.tables) == self._flies(request), "freed when the last step with it ends"
            if not request.tables:
                del self.ended_in_flight[request]
        for request, token, finish in outputs:
            self._yielded(request, token, finish)

    @precondition(lambda self: not self.batch)
    @rule(steps=st.integers(1, 6), overlap=st.booleans())
    def run(self, steps: int, overlap: bool) -> None:
        """Some whole steps, so that examples come far."""
        for _ in range(steps):
            self.now += 0.2
            if not self.batch:
                self.schedule()
            if self.batch and overlap:
                self.schedule_ahead()
            if self.batch:
                self.complete()

    def _yielded(self, request: Request, token: int, finish: Finish | None) -> None:
        assert self.live.get(request.id) is request, "output of a request that has ended"
        got = self.yielded[request]
        got.append(token)
        expected = generation(tuple(request.prompt), request.max_tokens, ONE_IN)
        assert got == expected[: len(got)], "preemption, a shared block or a neighbour changed the tokens"
        assert (finish is not None) == (len(got) == len(expected))
        if finish is not None:
            assert finish is (Finish.STOP if token == STOP else Finish.LENGTH)
            self.ends[request] += 1
            del self.live[request.id]
            self._ended(request)

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        scheduler.pool.check()
        users: Counter[int] = Counter()
        for request in (*scheduler.running, *scheduler.waiting):
            users.update(block for table in request.tables for block in table if block != NO_BLOCK)
        assert users == scheduler.pool.users, "a block is lost, or the number of its users is wrong"
        for request in scheduler.running:
            written = {table[i] for table in request.tables for i in range(request.computed // BLOCK_SIZE, len(table))}
            assert all(users[block] == 1 for block in written), "a block that is written to is shared"
        assert all(not r.blocks and r.scheduled == 0 for r in scheduler.waiting)
        known = {*scheduler.running, *scheduler.waiting}
        assert set(self.live.values()) == known - set(self.ended_in_flight)
        assert all(count == 1 for count in self.ends.values()), "a request ends once"

    def teardown(self) -> None:
        """Without new traffic everything ends, in a bounded number of steps."""
        if not hasattr(self, "scheduler"):
            return
        while self.batch:
            self.complete()
        for _ in range(2000):
            if not self.live:
                break
            self.schedule()
            if self.batch:
                self.complete()
        assert not self.live, "starved"
        self.scheduler.check_idle()
        assert self.scheduler.waiting_tokens == 0


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=CAMPAIGN or 400, stateful_step_count=100 if CAMPAIGN else 50, deadline=None
)
