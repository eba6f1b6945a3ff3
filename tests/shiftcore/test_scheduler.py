"""Order, shares, siblings, deadlines and preemption of the scheduler, each in a small case."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftcore.blocks import BlockPool
from shiftcore.scheduler import (
    Batch,
    DeadlinePassedError,
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
    expected = [generation(tuple(r.prompt), r.max_tokens) for r in requests]
    assert [r.tokens[len(r.prompt) :] for r in requests] == expected


def test_the_latest_request_gives_way_and_comes_back_first() -> None:
    scheduler = make(blocks=4)
    scheduler.add(request("old", 7, 9))
    scheduler.add(request("new", 4, 12))
    assert step(scheduler) == ["old:7", "new:4"]  # 2 + 1 blocks
    assert step(scheduler) == ["old:1", "new:1"]  # 2 + 2: full
    assert step(scheduler) == ["old:1"], "old needs a third block and takes it from new"
    scheduler.add(request("newest", 1, 1))
    new = scheduler.find("new")
    assert new in scheduler.waiting
    assert new is not None
    assert new.num_output == 2, "its tokens are kept"
    scheduler.abort("old")
    assert step(scheduler) == ["new:2", "newest:1"], "first, and its first block was still there"


def test_a_preempted_request_does_not_count_as_waiting_since_it_came() -> None:
    """It had its first token long ago; else each preemption looks like a queue for which a pod must be added."""
    scheduler = make(blocks=4)
    scheduler.add(request("old", 7, 9))
    scheduler.add(request("new", 4, 12))
    for now in (1.0, 2.0, 90.0):
        step(scheduler, now=now)
    assert [r.id for r in scheduler.waiting] == ["new"], "preempted"
    assert scheduler.oldest_wait(100.0) == 0.0
    scheduler.add(request("newest", 1, 1, arrival_seconds=97.0))
    assert scheduler.oldest_wait(100.0) == 3.0


def test_an_aborted_id_can_be_used_again_while_the_step_runs() -> None:
    scheduler = make()
    first, second = request("a", 9), Request("a", (50, 51, 52, 53, 54), 8)
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
    for senseless in (Request("b", (), 1), request("b", 1, 0)):
        with pytest.raises(NeverFitsError, match="at least one prompt token and one token to generate"):
            scheduler.add(senseless)
    scheduler.add(request("b", 20, 10))
    with pytest.raises(QueueFullError, match="2 requests wait, the limit is 2"):
        scheduler.add(request("c"))
    assert [r.id for r in scheduler.waiting] == ["a", "b"]


@pytest.mark.parametrize("name", ["max_num_seqs", "max_batched_tokens", "max_model_len", "max_waiting_requests"])
def test_limits_start_at_one(name: str) -> None:
    values: dict[str, Any] = {
        "max_num_seqs": 1,
        "max_batched_tokens": 1,
        "max_model_len": 1,
        "max_waiting_requests": 1,
    } | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Limits(**values)


def test_at_most_one_step_is_ahead() -> None:
    scheduler = make()
    scheduler.add(request("a"))
    scheduler.schedule()
    scheduler.schedule()
    with pytest.raises(AssertionError, match="two steps are in flight"):
        scheduler.schedule()


def test_a_step_ahead_goes_on_with_the_token_that_the_step_before_samples() -> None:
    scheduler = make(budget=8)
    scheduler.add(a := Request("a", (1, 2, 3), 3))
    scheduler.add(Request("b", tuple(range(1, 10)), 3))
    assert [(c.request.id, c.start, c.end, c.samples, c.follows) for c in scheduler.schedule()] == [
        ("a", 0, 3, True, False),
        ("b", 0, 5, False, False),
    ]
    assert [(c.request.id, c.start, c.end, c.samples, c.follows) for c in scheduler.schedule()] == [
        ("a", 3, 4, True, True),
        ("b", 5, 9, True, False),
    ]
    assert scheduler.complete({"a": 7}) == [(a, 7, None)]
    assert [(c.request.id, c.start, c.follows) for c in scheduler.schedule()] == [("a", 4, True), ("b", 9, True)]


def test_nothing_is_ahead_of_the_last_token() -> None:
    scheduler = make()
    scheduler.add(Request("a", (1, 2, 3), 2))
    scheduler.schedule()
    assert [c.end for c in scheduler.schedule()] == [4]
    scheduler.complete({"a": 7})
    assert scheduler.schedule() == (), "the step in flight brings the second of two tokens"
    assert [finish for _, _, finish in scheduler.complete({"a": 8})] == [Finish.LENGTH]
    scheduler.check_idle()


def test_what_is_computed_after_a_stop_is_dropped_and_blocks_stay_until_then() -> None:
    scheduler = make()
    scheduler.add(a := Request("a", (1, 2, 3), 9, frozenset({STOP})))
    scheduler.schedule()
    scheduler.schedule()
    assert scheduler.complete({"a": STOP}) == [(a, STOP, Finish.STOP)]
    assert a.blocks, "the step in flight writes to them"
    assert scheduler.schedule() == ()
    assert scheduler.complete({"a": 5}) == []
    assert a.tokens == [1, 2, 3, STOP]
    scheduler.check_idle()


def test_a_token_of_a_request_that_was_aborted_is_in_no_prefix() -> None:
    """Its keys and values are there, but the token is not known."""
    scheduler = make()
    scheduler.add(Request("a", (1, 2, 3), 9))
    scheduler.schedule()
    scheduler.schedule()
    scheduler.abort("a")
    scheduler.complete({"a": 7})
    scheduler.complete({"a": 8})
    scheduler.check_idle()
    assert scheduler.pool.num_cached == 0, "the block holds one token more than are known, and is not offered"


def test_nobody_is_preempted_under_a_step_in_flight() -> None:
    scheduler = make(blocks=4)
    scheduler.add(a := request("a", 4, 8))
    scheduler.add(request("b", 4, 8))
    while True:
        scheduler.schedule()
        if not scheduler.schedule():
            break
        assert scheduler.counts.preemptions == 0
        for _ in range(2):
            scheduler.complete(dict.fromkeys("ab", 5))
    assert len(a.blocks) == 2, "both need a third block, and there is none"
    scheduler.complete(dict.fromkeys("ab", 5))
    assert scheduler.counts.preemptions == 0
    assert [chunk.request for chunk in scheduler.schedule()] == [a]
    assert scheduler.counts.preemptions == 1


# --- prefix cache -----------------------------------------------------------------------------------------------------


def run_out(scheduler: Scheduler, limit: int = 200) -> None:
    for _ in range(limit):
        if not step(scheduler):
            return
    raise AssertionError("still running")


def shared(name: str, prompt: int, **more: Any) -> Request:
    return Request(name, tuple(range(1, prompt + 1)), 2, **more)


@pytest.mark.parametrize(("prompt", "cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (16, 12), (20, 16)])
def test_a_hit_is_of_full_blocks_and_leaves_a_token_to_compute(prompt: int, cached: int) -> None:
    scheduler = make()
    scheduler.add(shared("first", 20))
    run_out(scheduler)
    scheduler.add(second := shared("second", prompt))
    assert step(scheduler) == [f"second:{prompt - cached}"]
    assert second.cached_tokens == cached
    assert (scheduler.counts.queried_tokens, scheduler.counts.hit_tokens) == (20 + prompt, cached)


def test_output_tokens_can_be_a_prefix_too() -> None:
    scheduler = make()
    scheduler.add(Request("first", (1, 2, 3), 9))
    run_out(scheduler)
    scheduler.add(Request("second", (1, 2, 3, *[5] * 9), 2))
    assert step(scheduler) == ["second:4"], "the last sampled token was never computed"


def test_a_block_is_offered_only_when_its_step_is_complete() -> None:
    scheduler = make(budget=8)
    scheduler.add(shared("first", 12))
    assert step(scheduler) == ["first:8"]
    scheduler.add(second := shared("second", 20))
    batch = scheduler.schedule()
    assert [(c.request.id, c.length) for c in batch] == [("first", 4), ("second", 4)]
    assert second.cached_tokens == 8, "not the block that the same step computes"
    assert second.blocks[:2] == batch[0].request.blocks[:2]
    assert second.blocks[2] != batch[0].request.blocks[2]


def test_a_block_that_was_computed_in_part_is_not_offered() -> None:
    scheduler = make(budget=6)
    scheduler.add(shared("first", 12))
    assert step(scheduler) == ["first:6"]
    scheduler.abort("first")
    scheduler.add(second := shared("second", 12))
    step(scheduler)
    assert second.cached_tokens == 4


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        ({"tenant": "a"}, 16),
        ({"tenant": "b"}, 0),
        ({}, 0),
        ({"tenant": "a", "skip_cache_read": True}, 0),
        ({"tenant": "a", "cache_salt": "s"}, 0),
    ],
)
def test_only_the_same_tenant_reads_the_cache_and_only_who_may(changes: dict[str, Any], cached: int) -> None:
    scheduler = make()
    scheduler.add(shared("first", 20, tenant="a"))
    run_out(scheduler)
    scheduler.add(second := shared("second", 20, **changes))
    step(scheduler)
    assert second.cached_tokens == cached


def test_a_salt_hides_a_tenants_prefixes_from_all_but_the_same_salt() -> None:
    scheduler = make()
    scheduler.add(shared("first", 20, tenant="a", cache_salt="s"))
    run_out(scheduler)
    for name, salt, cached in (("none", "", 0), ("other", "t", 0), ("same", "s", 16)):
        scheduler.add(one := shared(name, 20, tenant="a", cache_salt=salt))
        run_out(scheduler)
        assert one.cached_tokens == cached


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    scheduler = make(cache=False)
    scheduler.add(shared("first", 20))
    run_out(scheduler)
    assert scheduler.pool.num_cached == 0
    scheduler.add(shared("second", 20))
    scheduler.add(shared("sibling", 20, waits_for="second"))
    assert step(scheduler) == ["second:20", "sibling:12"], "and nobody waits for what cannot be shared"
    assert scheduler.counts.queried_tokens == 0


def test_cached_blocks_make_room_and_the_longest_unused_go_first() -> None:
    scheduler = make(blocks=10)
    scheduler.add(request("old", 17, 1))
    run_out(scheduler)
    scheduler.add(request("new", 17, 1))
    run_out(scheduler)
    assert (scheduler.pool.num_cached, scheduler.pool.num_available) == (8, 10)
    scheduler.add(Request("other", tuple(range(50, 66)), 1))  # 4 blocks: 2 free ones and the last 2 of "old"
    run_out(scheduler)
    for name, cached in (("new", 16), ("old", 4)):  # "new" needs a block for its last token: the next of "old"
        scheduler.add(again := request(name, 17, 1))
        step(scheduler)
        assert again.cached_tokens == cached, name


def test_clearing_the_cache_forgets_prefixes_and_keeps_the_books() -> None:
    scheduler = make()
    scheduler.add(shared("first", 20))
    with pytest.raises(AssertionError, match="1 requests are here"):
        scheduler.clear_cache()
    run_out(scheduler)
    scheduler.clear_cache()
    scheduler.check_idle()
    assert scheduler.pool.num_cached == 0
    scheduler.add(second := shared("second", 20))
    step(scheduler)
    assert second.cached_tokens == 0


# --- siblings ---------------------------------------------------------------------------------------------------------


def test_siblings_wait_for_the_leaders_prompt_and_share_it() -> None:
    scheduler = make(budget=8)
    leader = shared("leader", 18, tenant="a")
    scheduler.add(leader)
    siblings = [shared(f"sibling-{i}", 18, tenant="a", waits_for="leader") for i in range(3)]
    for sibling in siblings:
        scheduler.add(sibling)
    scheduler.add(request("stranger", 3))
    assert step(scheduler) == ["leader:8"]
    assert step(scheduler) == ["leader:8"]
    assert step(scheduler) == ["leader:2", "stranger:3"], "siblings wait, others go on"
    assert step(scheduler) == ["leader:1", "stranger:1", "sibling-0:2", "sibling-1:2", "sibling-2:2"]
    assert {tuple(r.blocks[:4]) for r in siblings} == {tuple(siblings[0].blocks[:4])}


def test_a_sibling_goes_on_alone_when_its_leader_is_gone() -> None:
    scheduler = make(budget=8)
    scheduler.add(shared("leader", 18))
    scheduler.add(shared("sibling", 18, waits_for="leader"))
    assert step(scheduler) == ["leader:8"]
    scheduler.abort("leader")
    assert step(scheduler) == ["sibling:8"], "though the cache has what the leader left: 8 of 18 tokens"
    scheduler.add(shared("orphan", 18, waits_for="nobody"))
    run_out(scheduler)


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_request_past_its_deadline_is_not_admitted() -> None:
    scheduler = make()
    with pytest.raises(DeadlinePassedError, match=r"passed 1\.5 s before the request arrived"):
        scheduler.add(request("late", arrival_seconds=10.0, deadline=8.5))
    assert step(scheduler) == []


def test_deadlines_end_running_and_waiting_requests_and_free_their_blocks() -> None:
    scheduler = make(seqs=1)
    scheduler.add(running := request("running", deadline=2.0))
    scheduler.add(waiting := request("waiting", deadline=2.0))
    scheduler.add(request("patient"))
    assert step(scheduler, now=1.9) == ["running:4"]
    assert scheduler.take_expired() == []
    assert step(scheduler, now=2.0) == ["patient:4"]
    assert scheduler.take_expired() == [running, waiting]
    assert scheduler.take_expired() == [], "once"
    assert scheduler.find("running") is None


# --- order ------------------------------------------------------------------------------------------------------------


def test_lower_priority_numbers_begin_first() -> None:
    scheduler = make(seqs=1)
    for name, priority in (("late", 5), ("first", 0), ("urgent", -1), ("second", 0)):
        scheduler.add(request(name, max_tokens=1, priority=priority))
    assert [step(scheduler) for _ in range(4)] == [["urgent:4"], ["first:4"], ["second:4"], ["late:4"]]


def test_the_least_important_gives_way_even_if_it_came_first() -> None:
    scheduler = make(blocks=4)
    scheduler.add(request("cheap", 4, 12, priority=3))
    scheduler.add(request("dear", 7, 9))
    assert step(scheduler) == ["dear:7", "cheap:4"]
    assert step(scheduler) == ["dear:1", "cheap:1"]
    assert step(scheduler) == ["dear:1"]
    assert [r.id for r in scheduler.waiting] == ["cheap"]
    assert scheduler.counts.preemptions == 1


def test_a_prefill_takes_blocks_from_a_less_important_decode_of_the_same_step() -> None:
    """It once gave up itself instead: those already chosen for the step were spared."""
    scheduler = make(blocks=8, budget=8)
    scheduler.add(request("cheap", 2, 20, priority=1))
    assert step(scheduler) == ["cheap:2"]
    scheduler.add(request("dear", 27, 2))
    for _ in range(3):
        assert step(scheduler) == ["cheap:1", "dear:7"]
    assert scheduler.pool.num_available == 0
    assert step(scheduler) == ["dear:6"], "in the place of the decode that was chosen before"


def test_tenants_share_the_pod_however_many_requests_they_queue() -> None:
    scheduler = make(seqs=1, waiting=200)
    for i in range(40):
        scheduler.add(request(f"greedy-{i}", 8, 1, tenant="greedy"))
    for _ in range(5):
        step(scheduler)
    for i in range(4):
        scheduler.add(request(f"modest-{i}", 8, 1, tenant="modest"))
    begun = [step(scheduler)[0].split("-")[0] for _ in range(8)]
    assert Counter(begun) == {"greedy": 4, "modest": 4}
    assert step(scheduler)[0].startswith("greedy")


def test_shares_are_of_tokens_not_of_requests() -> None:
    scheduler = make(seqs=1, waiting=200)
    for i in range(20):
        scheduler.add(request(f"long-{i}", 24, 1, tenant="long"))
        scheduler.add(request(f"short-{i}", 8, 1, tenant="short"))
    begun = Counter(step(scheduler)[0].split("-")[0] for _ in range(16))
    assert begun == {"long": 4, "short": 12}


def test_an_idle_tenant_cannot_hoard_credit() -> None:
    scheduler = make(seqs=1, waiting=200)
    for i in range(40):
        scheduler.add(request(f"busy-{i}", 8, 1, tenant="busy"))
    for _ in range(20):
        step(scheduler)
    for i in range(40):
        scheduler.add(request(f"back-{i}", 8, 1, tenant="back"))
    begun = Counter(step(scheduler)[0].split("-")[0] for _ in range(10))
    assert begun == {"busy": 5, "back": 5}, "not ten in a row for the time it was away"
