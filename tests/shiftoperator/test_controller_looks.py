"""How often the controller looks at an object unasked, by what the last pass found and how many others there are."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from shiftoperator.handlers import Controller
from shiftoperator.handlers import controller as controllers
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key

from .recorder import Recorder


class Crowd:
    """A hundred objects with the usual pauses between two looks, on a clock that the test moves. The pauses between two
    polls are short."""

    def __init__(self, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(controllers, "MOST_POLLS_PER_SECOND", 1e6)
        self.recorder, self.now = recorder, 100.0
        self.controller = Controller(recorder, Metrics(), 5.0, 0.01, clock=lambda: self.now)
        self.keys = [Key("team", f"model-{number}") for number in range(100)]

    async def started(self) -> None:
        await self.controller.start()
        for key in self.keys:
            self.controller.wake(key)
        await self.until_polled()
        self.recorder.calls.clear()
        self.recorder.whole.clear()

    async def until_polled(self) -> None:
        """Each of them twice, as the clock stands."""
        before = len(self.recorder.calls)
        for _ in range(1000):
            polled = Counter(key for key, full in self.recorder.calls[before:] if not full)
            if all(polled[key] >= 2 for key in self.keys):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the objects are not polled")

    def looked_at(self) -> set[Key]:
        return {key for key, full in self.recorder.calls if full}


async def test_what_is_not_settled_is_looked_at_soon_however_many_others_there_are(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five hundred each was looked at every 100 s: a quota that refuses pods, the 30 s of a surge and a Secret that
    came at last were seen so late, because no event tells of them."""
    crowd = Crowd(recorder, monkeypatch)
    recorder.unsettled = set(crowd.keys[:3])
    await crowd.started()
    for _ in range(2):
        crowd.now += 6.1  # 5 s, and what spreads them
        await crowd.until_polled()
        assert crowd.looked_at() == recorder.unsettled
        recorder.calls.clear()
    assert not any(recorder.whole), "what only we write is not read again so often"
    recorder.unsettled = set()
    crowd.controller.wake(crowd.keys[0])
    await crowd.until_polled()
    recorder.calls.clear()
    crowd.now += 3.5  # 15.7 s in all: those that are settled come after 16 s at the earliest
    await crowd.until_polled()
    assert crowd.looked_at() == set()
    crowd.now += 8.4
    for _ in range(20):
        await crowd.until_polled()
        if crowd.looked_at() == set(crowd.keys):
            break
    await crowd.controller.stop()
    assert crowd.looked_at() == set(crowd.keys)
    assert any(recorder.whole)


async def test_what_becomes_unsettled_does_not_wait_for_the_look_that_was_planned_before(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(recorder, monkeypatch)
    await crowd.started()
    recorder.unsettled = {crowd.keys[7]}
    crowd.controller.wake(crowd.keys[7])
    await crowd.until_polled()
    recorder.calls.clear()
    crowd.now += 6.1
    await crowd.until_polled()
    await crowd.controller.stop()
    assert crowd.looked_at() == recorder.unsettled


async def test_when_nothing_is_settled_nothing_is_looked_at_more_often(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(recorder, monkeypatch)
    recorder.unsettled = set(crowd.keys)
    await crowd.started()
    crowd.now += 6.1
    await crowd.until_polled()
    crowd.now += 6.1
    await crowd.until_polled()
    await crowd.controller.stop()
    assert crowd.looked_at() == set()
