"""Repeated steps are the steps that would have been taken: the same books, block by block, and the same future."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from shiftcore.blocks import BlockPool
from shiftcore.scheduler import Batch, Limits, NeverFitsError, Request, Scheduler
from shiftcore.steady import SteadyScheduler

SHAPES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(1, 40), st.sampled_from((0, 0, 1)),
              st.sampled_from("xxy")),
    min_size=1, max_size=8,
)  # fmt: skip


def books(scheduler: Scheduler) -> dict[str, Any]:
    """All that a later step can depend on."""
    requests = sorted((*scheduler.running, *scheduler.waiting), key=lambda r: r.order)
    return {
        "running": [r.id for r in scheduler.running],
        "waiting": [r.id for r in scheduler.waiting],
        "requests": [
            (r.id, list(r.tokens), r.scheduled, r.computed, r.foreseen, r.tables, r.charged, r.prompt_computed)  # type: ignore[call-overload]
            for r in requests
        ],
        "in flight": plain(scheduler._in_flight),
        "free": sorted(scheduler.pool._free),
        "users": scheduler.pool.users,
        "served": {r.tenant: scheduler._shares.served(r.tenant) for r in requests},
        "preemptions": scheduler.counts.preemptions,
    }


def plain(batch: Batch) -> list[tuple[str, int, int, bool, bool]]:
    return [(chunk.request.id, chunk.start, chunk.length, chunk.samples, chunk.follows) for chunk in batch]


def step(scheduler: Scheduler, overlap: bool) -> Batch:
    """One turn of an engine's loop; the batch that has ended."""
    batch = scheduler._in_flight or scheduler.schedule()
    if overlap and batch:
        scheduler.schedule()
    scheduler.complete({chunk.request.id: 0 for chunk in batch if chunk.samples})
    return batch


def twins(limits: Limits, blocks: int, block_size: int, windows: tuple[None, ...]) -> tuple[Scheduler, SteadyScheduler]:
    return (
        Scheduler(limits, BlockPool(blocks, block_size), windows),
        SteadyScheduler(limits, BlockPool(blocks, block_size), windows),
    )


@settings(max_examples=100, deadline=None)
@given(
    shapes=SHAPES, overlap=st.booleans(), seqs=st.integers(1, 6), budget=st.sampled_from((64, 16, 5, 2)),
    blocks=st.integers(8, 60), groups=st.integers(1, 2), cut=st.integers(1, 50),
)  # fmt: skip
def test_repeating_leaves_the_books_of_stepping(
    shapes: list[tuple[int, int, int, int, str]],
    overlap: bool,
    seqs: int,
    budget: int,
    blocks: int,
    groups: int,
    cut: int,
) -> None:
    limits = Limits(seqs, budget, 128, 100, prefix_cache=False)
    stepping, repeating = twins(limits, blocks * groups, 4, (None,) * groups)
    arrivals = sorted(shapes)
    repeated = turn = 0
    while arrivals or stepping._by_id:
        while arrivals and (arrivals[0][0] <= turn or not stepping._by_id):
            _, prompt, output, priority, tenant = arrivals.pop(0)
            for scheduler in (stepping, repeating):
                name = f"{len(arrivals)}"
                try:
                    scheduler.add(Request(name, (1,) * prompt, output, tenant=tenant, priority=priority))
                except NeverFitsError:
                    continue
        # A loop that plans ahead has a step in flight at this place, unless blocks were short.
        turns = min(cut, repeating.steady_steps()) if bool(repeating._in_flight) == overlap else 0
        if turns:
            before = {r.id for r in stepping.running}
            waiting = len(stepping.waiting)
            for _ in range(turns):
                batch = step(stepping, overlap)
                assert {chunk.request.id for chunk in batch} == before, "a steady step has the requests that run"
                assert all(chunk.length == 1 for chunk in batch)
            assert {r.id for r in stepping.running} == before, "somebody ended or gave way in a steady step"
            assert len(stepping.waiting) == waiting, "somebody began in a steady step"
            repeating.repeat(turns)
            repeated += turns
        elif stepping._by_id:
            assert plain(step(stepping, overlap)) == plain(step(repeating, overlap))
        turn += max(1, turns)
        assert books(stepping) == books(repeating)
    repeating.pool.check()


def test_a_long_answer_is_mostly_steady() -> None:
    """The point of it: without this the property above could hold for steps that are never repeated."""
    _, scheduler = twins(Limits(4, 64, 4096, 100, prefix_cache=False), 300, 16, (None,))
    for name, output in (("a", 1000), ("b", 1500)):
        scheduler.add(Request(name, (1,) * 50, output))
    singles = repeated = 0
    while scheduler._by_id:
        turns = scheduler.steady_steps()
        if turns:
            scheduler.repeat(turns)
            repeated += turns
        else:
            step(scheduler, overlap=True)
            singles += 1
    assert singles + repeated >= 1500
    assert singles <= 8


def test_a_request_that_waits_for_room_does_not_stop_the_repeats() -> None:
    _, scheduler = twins(Limits(4, 64, 512, 100, prefix_cache=False), 20, 16, (None,))
    scheduler.add(Request("reader", (1,) * 16, 250))
    step(scheduler, overlap=False)
    scheduler.add(Request("large", (1,) * 310, 4))
    assert scheduler.steady_steps() == 248
    scheduler.add(Request("urgent", (1,) * 16, 4, priority=-1))
    assert scheduler.steady_steps() == 0, "it has room and goes first"


def test_what_depends_on_more_than_counts_is_never_steady() -> None:
    for limits, windows, more in (
        (Limits(4, 64, 512, 100, prefix_cache=True), (None,), {}),
        (Limits(4, 64, 512, 100, prefix_cache=False), (8,), {}),
        (Limits(4, 64, 512, 100, prefix_cache=False), (None,), {"deadline": 9.0}),
        (Limits(4, 64, 512, 100, prefix_cache=False), (None,), {"stop_token_ids": frozenset({7})}),
    ):
        scheduler = SteadyScheduler(limits, BlockPool(100, 4), windows)
        scheduler.add(Request("a", (1,) * 9, 50, **more))  # type: ignore[arg-type]
        step(scheduler, overlap=False)
        assert scheduler.steady_steps() == 0, (limits, windows, more)


def test_running_requests_that_need_the_last_blocks_are_steady_until_these_are_taken() -> None:
    _, scheduler = twins(Limits(4, 64, 512, 100, prefix_cache=False), 10, 4, (None,))
    for name in "ab":
        scheduler.add(Request(name, (1,) * 7, 30))
    step(scheduler, overlap=False)
    # 7 tokens of each fill two blocks but for one token; three more blocks for each are left.
    assert scheduler.steady_steps() == 1 + 3 * 4
    scheduler.repeat(13)
    assert scheduler.pool.num_available == 0
    assert scheduler.steady_steps() == 0
    step(scheduler, overlap=False)
    assert scheduler.counts.preemptions == 1
