from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import kopf
import pytest
from shiftoperator.errors import TransientError
from shiftoperator.handlers import Controller, run
from shiftoperator.handlers import controller as controllers
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key
from shiftoperator.settings import Settings

KEY, OTHER = Key("team", "gemma"), Key("team", "other")


class Recorder:
    """Stands in for the reconciler."""

    def __init__(self) -> None:
        self.calls: list[tuple[Key, bool]] = []
        self.whole: list[bool] = []
        self.pushes: list[tuple[Key, Any]] = []
        self.push_fails: Exception | None = None
        self.answers: list[bool | Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = self.most_running = 0
        self.forgotten = 0

    async def forget_all(self) -> None:
        assert self.running == 0, "a pass that runs would remember again"
        self.forgotten += 1

    async def push(self, key: Key, hint: Any) -> None:
        self.pushes.append((key, hint))
        if self.push_fails is not None:
            raise self.push_fails

    async def reconcile(self, key: Key, full: bool, whole: bool) -> bool:
        self.calls.append((key, full))
        self.whole.append(whole)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if full:
                await self.gate.wait()
        finally:
            self.running -= 1
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def controller(recorder: Recorder) -> AsyncIterator[Controller]:
    controller = Controller(recorder, Metrics(), resync_seconds=60, poll_seconds=60)
    yield controller
    await controller.stop()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_standby_only_listens(controller: Controller, recorder: Recorder) -> None:
    controller.wake(KEY, {"a": 1})
    await settle()
    assert recorder.calls == []
    await controller.start()
    await settle()
    assert [call[0] for call in recorder.calls] == [KEY]


async def test_events_while_busy_are_merged(controller: Controller, recorder: Recorder) -> None:
    await controller.start()
    recorder.gate.clear()
    controller.wake(KEY, {"n": 1})
    await settle()
    for n in range(2, 6):
        controller.wake(KEY, {"n": n})
    controller.wake(KEY)
    recorder.gate.set()
    await settle()
    assert recorder.pushes == [(KEY, {"n": 1}), (KEY, {"n": 5})]
    assert recorder.calls == [(KEY, True), (KEY, True)]
    assert recorder.most_running == 1, "one worker per object"


async def test_objects_do_not_wait_for_each_other(controller: Controller, recorder: Recorder) -> None:
    await controller.start()
    recorder.gate.clear()
    controller.wake(KEY)
    controller.wake(OTHER)
    await settle()
    assert recorder.most_running == 2


async def test_polls_between_full_passes(recorder: Recorder) -> None:
    controller = Controller(recorder, Metrics(), resync_seconds=60, poll_seconds=0.01)
    await controller.start()
    controller.wake(KEY)
    await asyncio.sleep(0.1)
    await controller.stop()
    kinds = [full for _, full in recorder.calls]
    assert kinds[0] is True
    assert len(kinds) > 2
    assert not any(kinds[1:])


async def test_after_an_event_only_what_changes_by_itself_is_read(controller: Controller, recorder: Recorder) -> None:
    await controller.start()
    for _ in range(3):
        controller.wake(KEY)
        await settle()
    assert recorder.calls == [(KEY, True)] * 3
    assert recorder.whole == [True, False, False], "what was never read is read whole"


async def test_after_a_failure_everything_is_read_again(controller: Controller, recorder: Recorder) -> None:
    recorder.answers = [True, TransientError("no answer", delay_seconds=0.01), True]
    await controller.start()
    for _ in range(2):
        controller.wake(KEY)
        await settle()
    for _ in range(1000):
        if len(recorder.whole) >= 3:
            break
        await asyncio.sleep(0.01)
    assert recorder.whole[:3] == [True, False, True]


async def test_events_do_not_put_off_the_look_at_everything(recorder: Recorder) -> None:
    controller = Controller(recorder, Metrics(), resync_seconds=0.05, poll_seconds=60)
    await controller.start()
    for _ in range(60):
        controller.wake(KEY)
        await asyncio.sleep(0.01)
    await controller.stop()
    assert recorder.whole.count(True) >= 3, "one at the start alone, if each event put it off"
    assert False in recorder.whole


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


@pytest.mark.parametrize("error", [TransientError("no API"), RuntimeError("a bug")])
async def test_a_push_that_fails_does_not_hold_up_the_pass(
    controller: Controller, recorder: Recorder, error: Exception
) -> None:
    await controller.start()
    recorder.push_fails = error
    controller.wake(KEY, {"policy": 1})
    await settle()
    assert (recorder.pushes, recorder.calls) == ([(KEY, {"policy": 1})], [(KEY, True)])


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


async def test_a_gone_object_ends_its_worker(controller: Controller, recorder: Recorder) -> None:
    await controller.start()
    recorder.answers = [False]
    controller.wake(KEY)
    await settle()
    controller.wake_known(KEY)
    await settle()
    assert len(recorder.calls) == 1, "a pod that outlives its object wakes nobody"
    controller.wake(KEY)
    await settle()
    assert len(recorder.calls) == 2


async def test_an_object_made_anew_while_the_old_one_is_missed(controller: Controller, recorder: Recorder) -> None:
    await controller.start()
    recorder.gate.clear()
    recorder.answers = [False]
    controller.wake(KEY)
    await settle()
    controller.wake(KEY, {"new": 1})
    recorder.gate.set()
    await settle()
    assert recorder.calls == [(KEY, True), (KEY, True)]
    assert recorder.pushes == [(KEY, {"new": 1})]
    controller.wake_known(KEY)
    await settle()
    assert len(recorder.calls) == 3, "it is still known"


@pytest.mark.parametrize("error", [TransientError("no API", 0.01), RuntimeError("a bug")])
async def test_errors_are_tried_again(controller: Controller, recorder: Recorder, error: Exception) -> None:
    await controller.start()
    recorder.answers = [error]
    controller.wake(KEY)
    await settle()
    # An event does not wait for the pause after an error.
    controller.wake(KEY)
    await asyncio.sleep(0.05)
    assert [full for _, full in recorder.calls][:2] == [True, True]


async def test_events_in_an_outage_do_not_lengthen_the_pause_after_it(
    controller: Controller, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    await controller.start()
    recorder.answers = [TransientError("no API", 1.0) for _ in range(8)]
    for _ in range(8):
        controller.wake(KEY)
        await settle()
    assert len(recorder.calls) == 8
    assert [record.args[1] for record in caplog.records if record.args] == [1.0] * 8  # type: ignore[index]


async def test_losing_the_lease_stops_work_in_flight(controller: Controller, recorder: Recorder) -> None:
    await controller.start()
    recorder.gate.clear()
    controller.wake(KEY)
    await settle()
    await controller.stop()
    assert (recorder.running, recorder.forgotten) == (0, 1)
    controller.wake(KEY)
    await settle()
    assert len(recorder.calls) == 1
    recorder.gate.set()
    await controller.start()
    await settle()
    assert len(recorder.calls) == 2, "back from standby without a restart"


class FailsAsItIsCancelled(Recorder):
    """Two reads at once, of which one fails in the very turn in which the worker is cancelled: gather then raises the
    failure, and nobody hears of the cancellation."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = asyncio.Event()

    async def reconcile(self, key: Key, full: bool, whole: bool) -> bool:
        self.calls.append((key, full))
        self.whole.append(whole)

        async def read() -> None:
            await self.fails.wait()
            raise TransientError("not sent, this process does not lead any more", delay_seconds=0.01)

        await asyncio.gather(read(), asyncio.sleep(60))
        return True


async def test_a_cancellation_that_was_swallowed_does_not_keep_a_standby_from_leading_again() -> None:
    """The worker went on for ever, whoever waited for its end with it: the operator never led again."""
    recorder = FailsAsItIsCancelled()
    controller = Controller(recorder, Metrics(), resync_seconds=60, poll_seconds=60)
    await controller.start()
    controller.wake(KEY)
    await settle()
    recorder.fails.set()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await controller.stop()
    assert recorder.forgotten == 1
    passes = len(recorder.calls)
    await controller.start()
    await settle()
    assert len(recorder.calls) == passes + 1
    async with asyncio.timeout(5):
        await controller.stop()


async def test_a_call_that_fails_while_the_process_is_told_to_end_is_no_failure(
    recorder: Recorder, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf ends every task of the loop, ours too, and raises what it finds: SIGTERM after an outage made exit 1."""

    async def operator(**_: Any) -> None:
        async def read() -> None:
            raise TransientError("GET secrets: cannot connect")

        ours = asyncio.create_task(read())
        await asyncio.wait({ours})
        ours.result()

    monkeypatch.setattr(kopf, "operator", operator)
    await run(controller, Settings())
