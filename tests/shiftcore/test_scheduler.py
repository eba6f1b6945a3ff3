"""Order, shares, deadlines and preemption of the scheduler, each in a small case."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftcore.scheduler import (
    DeadlinePassedError,
    DuplicateRequestError,
    Limits,
    NeverFitsError,
    QueueFullError,
    Request,
)

from .scheduling import STOP, Model, check_blocks, generation, make, request, step


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
