"""What the scheduler takes from the prefix cache, and siblings that share a prompt."""

from __future__ import annotations

from typing import Any

import pytest
from shiftcore.scheduler import Request, Scheduler

from .scheduling import make, request, step


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
