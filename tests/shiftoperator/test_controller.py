"""When the controller looks at a resource: events, polls, errors, and the lead that comes and goes."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import pytest
from shiftoperator.errors import TransientError, UserError
from shiftoperator.handlers import Controller, run
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key
from shiftoperator.plan import Found
from shiftoperator.settings import Settings

from .recorder import KEY, OTHER, Recorder, settle


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
    recorder.answers = [Found.SETTLED, TransientError("no answer", delay_seconds=0.01)]
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


@pytest.mark.parametrize("error", [TransientError("no API"), RuntimeError("a bug")])
async def test_a_push_that_fails_does_not_hold_up_the_pass(
    controller: Controller, recorder: Recorder, error: Exception
) -> None:
    await controller.start()
    recorder.push_fails = error
    controller.wake(KEY, {"policy": 1})
    await settle()
    assert (recorder.pushes, recorder.calls) == ([(KEY, {"policy": 1})], [(KEY, True)])


async def test_a_gone_object_ends_its_worker(controller: Controller, recorder: Recorder) -> None:
    await controller.start()
    recorder.answers = [Found.GONE]
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
    recorder.answers = [Found.GONE]
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

    async def reconcile(self, key: Key, full: bool, whole: bool) -> Found:
        self.calls.append((key, full))
        self.whole.append(whole)

        async def read() -> None:
            await self.fails.wait()
            raise TransientError("not sent, this process does not lead any more", delay_seconds=0.01)

        await asyncio.gather(read(), asyncio.sleep(60))
        return Found.SETTLED


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


async def test_a_refusal_that_no_status_can_tell_is_a_line_and_no_trace(
    controller: Controller, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.answers = [UserError("Forbidden", "operator cannot patch shiftdeployments/status")]
    await controller.start()
    controller.wake(KEY)
    await settle()
    assert "operator cannot patch shiftdeployments/status" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
