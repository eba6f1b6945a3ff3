"""The scheduler under random traffic: what holds in every step, and that nothing is lost or forgotten."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shiftcore.blocks import BlockPool
from shiftcore.scheduler import (
    Batch,
    DuplicateRequestError,
    Finish,
    Limits,
    NeverFitsError,
    QueueFullError,
    Request,
    Scheduler,
)

BLOCK_SIZE = 4
STOP = 0


def next_token(tokens: list[int]) -> int:
    """A stand-in for the model: the token depends on every token before it. About one in eleven stops."""
    value = 7
    for token in tokens:
        value = (31 * value + token + 1) % 1009
    return value % 11


def generation(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    """What a request must yield, whatever else runs."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens))
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
                sampled[request.id] = next_token(request.tokens)
        return sampled


def check_batch(scheduler: Scheduler, batch: Batch) -> None:
    limits = scheduler.limits
    assert sum(chunk.length for chunk in batch) <= limits.max_batched_tokens
    assert all(chunk.length >= 1 for chunk in batch)
    assert len(scheduler.running) <= limits.max_num_seqs
    assert len({id(chunk.request) for chunk in batch}) == len(batch), "a request twice in a step"
    assert all(chunk.request in scheduler.running for chunk in batch)
    decodes = [chunk.request.missing == 1 for chunk in batch if chunk.request.computed]
    assert decodes == sorted(decodes, reverse=True), "a running prefill goes before a decode"


def check_blocks(scheduler: Scheduler) -> None:
    scheduler.pool.check()
    owners = Counter(block for r in (*scheduler.running, *scheduler.waiting) for block in r.blocks)
    assert all(count == 1 for count in owners.values()), "a block is shared"
    assert len(owners) == scheduler.pool.num_blocks - scheduler.pool.num_free, "a block is lost"
    assert all(not r.blocks and r.computed == 0 for r in scheduler.waiting)


class Traffic(RuleBasedStateMachine):
    """Requests come, run and are aborted at any moment, also while a step is in flight."""

    @initialize(
        max_num_seqs=st.integers(1, 5), budget=st.integers(1, 24), waiting=st.integers(1, 6), blocks=st.integers(3, 14)
    )
    def begin(self, max_num_seqs: int, budget: int, waiting: int, blocks: int) -> None:
        self.limits = Limits(max_num_seqs, budget, max_model_len=32, max_waiting_requests=waiting)
        self.scheduler = Scheduler(self.limits, BlockPool(blocks, BLOCK_SIZE))
        self.model = Model()
        self.batch: Batch = ()
        self.live: dict[str, Request] = {}
        self.yielded: dict[Request, list[int]] = defaultdict(list)
        self.blocks_at_abort: dict[Request, list[int]] = {}

    @rule(name=st.sampled_from("abcdefgh"), prompt=st.lists(st.integers(1, 10), max_size=24), n=st.integers(0, 12))
    def add(self, name: str, prompt: list[int], n: int) -> None:
        request = Request(name, tuple(prompt), n, frozenset({STOP}))
        longest = min(self.limits.max_model_len, self.scheduler.pool.num_blocks * BLOCK_SIZE)
        error: type[Exception] | None = None
        if name in self.live:
            error = DuplicateRequestError
        elif not prompt or n < 1 or len(prompt) + n > longest:
            error = NeverFitsError
        elif len(self.scheduler.waiting) >= self.limits.max_waiting_requests:
            error = QueueFullError
        if error is not None:
            with pytest.raises(error):
                self.scheduler.add(request)
        else:
            self.scheduler.add(request)
            self.live[name] = request

    @rule(name=st.sampled_from("abcdefgh"))
    def abort(self, name: str) -> None:
        request = self.live.pop(name, None)
        assert self.scheduler.abort(name) == (request is not None)
        if request is not None and any(chunk.request is request for chunk in self.batch):
            assert request.blocks, "the blocks of a request in flight are kept until the step ends"
            self.blocks_at_abort[request] = list(request.blocks)
        elif request is not None:
            assert not request.blocks

    @precondition(lambda self: not self.batch)
    @rule()
    def schedule(self) -> None:
        self.batch = self.scheduler.schedule()
        check_batch(self.scheduler, self.batch)
        assert bool(self.batch) == bool(self.live), "something can always run, and nothing runs for nobody"

    @precondition(lambda self: self.batch)
    @rule()
    def complete(self) -> None:
        for request, blocks in self.blocks_at_abort.items():
            assert request.blocks == blocks, "freed while the ranks still write to them"
        outputs = self.scheduler.complete(self.model.run(self.batch))
        aborted = set(self.blocks_at_abort)
        assert all(not request.blocks for request in aborted), "freed when the step ends"
        self.blocks_at_abort.clear()
        self.batch = ()
        for request, token, finish in outputs:
            assert request not in aborted
            self._yielded(request, token, finish)

    def _yielded(self, request: Request, token: int, finish: Finish | None) -> None:
        assert self.live.get(request.id) is request, "output of a request that has ended"
        got = self.yielded[request]
        got.append(token)
        expected = generation(request.prompt, request.max_tokens)
        assert got == expected[: len(got)], "preemption or a neighbour changed the tokens"
        assert (finish is not None) == (len(got) == len(expected))
        if finish is not None:
            assert finish is (Finish.STOP if token == STOP else Finish.LENGTH)
            assert not request.blocks
            del self.live[request.id], self.yielded[request]

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "scheduler"):
            check_blocks(self.scheduler)
            known = {id(r) for r in (*self.scheduler.running, *self.scheduler.waiting)}
            assert {id(r) for r in self.live.values()} <= known

    def teardown(self) -> None:
        """Without new traffic everything ends, in a bounded number of steps."""
        if not hasattr(self, "scheduler"):
            return
        if self.batch:
            self.complete()
        for _ in range(2000):
            if not self.live:
                break
            self.schedule()
            self.complete()
        assert not self.live, "starved"
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks
        assert self.scheduler.waiting_tokens == 0


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def make(blocks: int = 64, *, seqs: int = 8, budget: int = 32, length: int = 200, waiting: int = 50) -> Scheduler:
    return Scheduler(Limits(seqs, budget, length, waiting), BlockPool(blocks, BLOCK_SIZE))


def step(scheduler: Scheduler, token: int = 5) -> list[str]:
    """One step; the names of the chunks in order, with their lengths."""
    batch = scheduler.schedule()
    check_batch(scheduler, batch)
    scheduler.complete({chunk.request.id: token for chunk in batch if chunk.samples})
    check_blocks(scheduler)
    return [f"{chunk.request.id}:{chunk.length}" for chunk in batch]


def request(name: str, prompt: int = 4, max_tokens: int = 8) -> Request:
    return Request(name, tuple(range(1, prompt + 1)), max_tokens)


def test_long_prompts_are_cut_and_decodes_go_first() -> None:
    scheduler = make(budget=10)
    scheduler.add(request("long", 25))
    assert step(scheduler) == ["long:10"]
    scheduler.add(request("short", 3))
    assert step(scheduler) == ["long:10"]
    assert step(scheduler) == ["long:5", "short:3"]
    scheduler.add(request("next", 30))
    assert step(scheduler) == ["long:1", "short:1", "next:8"]
    scheduler.add(request("last", 2))
    assert step(scheduler) == ["long:1", "short:1", "next:8"]
    assert scheduler.waiting_tokens == 14 + 2


def test_first_come_first_served_under_steady_load() -> None:
    """Two requests arrive per step for a while, more than can run: each begins in order of arrival and ends."""
    scheduler = make(blocks=24, seqs=3, budget=12, waiting=200)
    begun: list[str] = []
    for tick in range(400):
        if tick < 40:
            for i in range(2):
                scheduler.add(request(f"{2 * tick + i:03d}", prompt=1 + (5 * tick + i) % 17, max_tokens=6))
        for name in step(scheduler):
            if (key := name.split(":")[0]) not in begun:
                begun.append(key)
    assert begun == [f"{i:03d}" for i in range(80)]
    assert not scheduler.running
    assert not scheduler.waiting


@given(st.integers(8, 20), st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=2, max_size=8))
@settings(deadline=None)
def test_preemption_in_a_small_pool_loses_no_token(blocks: int, shapes: list[tuple[int, int]]) -> None:
    scheduler, model = make(blocks), Model()
    requests = [Request(str(i), tuple(range(i, i + p)), n, frozenset({STOP})) for i, (p, n) in enumerate(shapes)]
    for r in requests:
        scheduler.add(r)
    finished: Counter[str] = Counter()
    for _ in range(500):
        batch = scheduler.schedule()
        if not batch:
            break
        finished.update(r.id for r, _, finish in scheduler.complete(model.run(batch)) if finish)
        check_blocks(scheduler)
    assert finished == {r.id: 1 for r in requests}
    assert [r.tokens[len(r.prompt) :] for r in requests] == [generation(r.prompt, r.max_tokens) for r in requests]


def test_the_latest_request_gives_way_and_comes_back_first() -> None:
    scheduler = make(blocks=4)
    scheduler.add(request("old", 7, 9))
    scheduler.add(request("new", 4, 12))
    assert step(scheduler) == ["old:7", "new:4"]  # 2 + 1 blocks
    assert step(scheduler) == ["old:1", "new:1"]  # 2 + 2: full
    assert step(scheduler) == ["old:1"], "old needs a third block and takes it from new"
    scheduler.add(request("newest", 1, 1))
    assert [r.id for r in scheduler.waiting] == ["new", "newest"]
    assert scheduler.waiting[0].num_output == 2, "its tokens are kept"


def test_an_aborted_id_can_be_used_again_while_the_step_runs() -> None:
    scheduler = make()
    first, second = request("a", 9), request("a", 5)
    scheduler.add(first)
    assert len(scheduler.schedule()) == 1
    held = list(first.blocks)
    assert scheduler.abort("a")
    assert not scheduler.abort("a"), "once"
    scheduler.add(second)
    assert scheduler.find("a") is second
    assert first.blocks == held
    assert scheduler.complete({"a": 5}) == []
    assert first.blocks == []
    assert second.num_output == 0, "the token of the aborted one is not the new one's"
    assert step(scheduler) == ["a:5"]
    assert second.num_output == 1


def test_refusals_have_the_numbers() -> None:
    scheduler = make(blocks=8, length=30, waiting=2)
    scheduler.add(request("a"))
    with pytest.raises(DuplicateRequestError, match="request a is in flight"):
        scheduler.add(request("a"))
    with pytest.raises(NeverFitsError, match="20 prompt tokens and 11 to generate exceed the 30"):
        scheduler.add(request("b", 20, 11))
    with pytest.raises(NeverFitsError, match="7 prompt tokens and 6 to generate exceed the 12"):
        make(blocks=3).add(request("b", 7, 6))
    for senseless in (request("b", 0, 1), request("b", 1, 0)):
        with pytest.raises(NeverFitsError, match="at least one prompt token and one token to generate"):
            scheduler.add(senseless)
    scheduler.add(request("b", 20, 10))
    with pytest.raises(QueueFullError, match="2 requests wait, the limit is 2"):
        scheduler.add(request("c"))
    assert [r.id for r in scheduler.waiting] == ["a", "b"]


@pytest.mark.parametrize("name", ["max_num_seqs", "max_batched_tokens", "max_model_len", "max_waiting_requests"])
def test_limits_start_at_one(name: str) -> None:
    values = {"max_num_seqs": 1, "max_batched_tokens": 1, "max_model_len": 1, "max_waiting_requests": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Limits(**values)


def test_a_step_ends_before_the_next_begins() -> None:
    scheduler = make()
    scheduler.add(request("a"))
    scheduler.schedule()
    with pytest.raises(AssertionError, match="a step is in flight"):
        scheduler.schedule()
