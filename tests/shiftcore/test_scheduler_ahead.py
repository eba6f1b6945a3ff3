"""The step that is scheduled while the ranks run the one before it."""

from __future__ import annotations

import pytest
from shiftcore.scheduler import Finish, Request

from .scheduling import STOP, make, request


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
