"""How the controller shares its places: many resources, second tries and looks hold up nothing that happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from shiftoperator.errors import TransientError
from shiftoperator.handlers import Controller
from shiftoperator.handlers import controller as controllers
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key

from .recorder import KEY, Recorder, settle


async def test_second_tries_leave_room_for_what_happens(recorder: Recorder) -> None:
    """Many objects behind a webhook that hangs held every place, and those that were well were not looked at."""
    controller = Controller(recorder, Metrics(), resync_seconds=60, poll_seconds=60)
    recorder.answers = [TransientError("no answer", delay_seconds=0.01) for _ in range(40)]
    await controller.start()
    for number in range(40):
        controller.wake(Key("team", f"failing-{number}"))
    for _ in range(1000):
        if len(recorder.calls) >= 40:
            break
        await asyncio.sleep(0.01)
    recorder.gate.clear()
    await asyncio.sleep(2.0)
    assert recorder.running <= controllers.MOST_RETRIES_AT_ONCE
    controller.wake(KEY)
    await settle()
    assert recorder.calls[-1] == (KEY, True), "it found a place"
    recorder.gate.set()
    for _ in range(1000):
        if len(recorder.calls) >= 40 + 40 + 1:
            break
        await asyncio.sleep(0.01)
    await controller.stop()
    assert len({key for key, _ in recorder.calls[40:]}) == 41, "each had its second try"


async def test_what_was_read_whole_at_first_is_not_read_whole_again_at_once(recorder: Recorder) -> None:
    controller = Controller(recorder, Metrics(), resync_seconds=60, poll_seconds=0.01)
    recorder.gate.clear()
    await controller.start()
    for number in range(12):
        controller.wake(Key("team", f"model-{number}"))
    await settle()
    recorder.gate.set()
    await asyncio.sleep(2.0)
    await controller.stop()
    assert recorder.whole.count(True) <= controllers.MOST_RESYNCS_AT_ONCE
    assert len(recorder.calls) > 24, "they were looked at again"


async def test_policies_that_keep_coming_hold_no_place(controller: Controller, recorder: Recorder) -> None:
    """The full pass was put off as long as another policy came while one was pushed."""
    pushed = asyncio.Event()

    async def push(key: Key, hint: Any) -> None:
        recorder.pushes.append((key, hint))
        controller.wake(KEY, {"n": hint["n"] + 1})
        pushed.set()
        await asyncio.sleep(0)

    recorder.push = push  # type: ignore[method-assign]
    await controller.start()
    controller.wake(KEY, {"n": 1})
    for _ in range(100):
        if recorder.calls:
            break
        await asyncio.sleep(0.01)
    assert recorder.calls, "one pass between two policies"


async def test_looks_at_everything_leave_room_for_what_happens(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five hundred resources that were looked at took every place, and a change waited nine seconds for one."""
    monkeypatch.setattr(controllers, "MOST_RESYNCS_PER_SECOND", 30.0)
    controller = Controller(recorder, Metrics(), resync_seconds=0.01, poll_seconds=0.01)
    keys = [Key("team", f"model-{number}") for number in range(30)]
    await controller.start()
    for key in keys:
        controller.wake(key)
    await settle()
    recorder.gate.clear()
    recorder.calls.clear()
    recorder.whole.clear()
    await asyncio.sleep(2.0)
    full = [key for key, full in recorder.calls if full]
    assert recorder.whole.count(True) == len(full) == controllers.MOST_RESYNCS_AT_ONCE
    other = Key("team", "changed")
    controller.wake(other)
    await settle()
    assert recorder.calls[-1] == (other, True), "it found a place"
    recorder.gate.set()
    await asyncio.sleep(1.0)
    await controller.stop()
    assert recorder.whole.count(True) > controllers.MOST_RESYNCS_AT_ONCE, "the others had their turn"


async def test_many_objects_are_looked_at_more_rarely(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every two seconds each, five hundred of them left no time for what happened meanwhile."""
    monkeypatch.setattr(controllers, "MOST_POLLS_PER_SECOND", 20.0)
    controller = Controller(recorder, Metrics(), resync_seconds=60, poll_seconds=0.01)
    await controller.start()
    for number in range(10):
        controller.wake(Key("team", f"model-{number}"))
    await asyncio.sleep(1.0)
    await controller.stop()
    polls = [full for _, full in recorder.calls].count(False)
    assert 1 <= polls <= 30, "one of them alone would have been looked at 100 times"


async def test_full_passes_of_many_objects_wait_their_turn(controller: Controller, recorder: Recorder) -> None:
    """Five hundred at once let nearly every call to the API server run out of time, and cost the lead."""
    recorder.gate.clear()
    await controller.start()
    for number in range(50):
        controller.wake(Key("team", f"model-{number}"))
    await settle()
    assert recorder.running == controllers.MOST_PASSES_AT_ONCE
    recorder.gate.set()
    await settle()
    assert len({key for key, _ in recorder.calls}) == 50
    assert recorder.most_running == controllers.MOST_PASSES_AT_ONCE


async def busy(controller: Controller, recorder: Recorder) -> list[Key]:
    """Full passes that last in every place; returns the objects that wait for one."""
    recorder.gate.clear()
    await controller.start()
    keys = [Key("team", f"model-{number}") for number in range(controllers.MOST_PASSES_AT_ONCE + 4)]
    for key in keys:
        controller.wake(key)
    await settle()
    return keys[controllers.MOST_PASSES_AT_ONCE :]


async def test_a_policy_does_not_wait_behind_the_full_passes_of_others(
    controller: Controller, recorder: Recorder
) -> None:
    """Sixteen of them that waited for a slow API server held up what a person had just changed."""
    waiting, *_ = await busy(controller, recorder)
    controller.wake(KEY, {"policy": 1})
    controller.wake(waiting, {"policy": 2})
    await settle()
    assert recorder.pushes == [(KEY, {"policy": 1}), (waiting, {"policy": 2})]
    controller.wake(KEY, {"policy": 3})
    await settle()
    assert recorder.pushes[2:] == [(KEY, {"policy": 3})], "also one that comes while the first waits for its full pass"
    assert recorder.running == controllers.MOST_PASSES_AT_ONCE
    recorder.gate.set()
    await settle()
    assert [full for key, full in recorder.calls if key == KEY] == [True], "one pass, after all that happened before it"
    assert recorder.most_running == controllers.MOST_PASSES_AT_ONCE


async def test_a_policy_waits_for_the_pass_of_its_own_object(controller: Controller, recorder: Recorder) -> None:
    await busy(controller, recorder)
    running = recorder.calls[0][0]
    controller.wake(running, {"policy": 1})
    await settle()
    assert recorder.pushes == []
    recorder.gate.set()
    await settle()
    assert recorder.pushes == [(running, {"policy": 1})]


async def test_who_waits_for_a_place_gives_the_lead_away_and_takes_no_place(
    controller: Controller, recorder: Recorder
) -> None:
    waiting = await busy(controller, recorder)
    await controller.stop()
    assert recorder.running == 0
    recorder.calls.clear()
    await controller.start()
    await settle()
    assert recorder.running == controllers.MOST_PASSES_AT_ONCE, "every place is free again"
    recorder.gate.set()
    await settle()
    assert set(waiting) <= {key for key, _ in recorder.calls}
