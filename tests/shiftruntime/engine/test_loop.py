"""The step loop over ranks that only answer: what needs no process to be seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from helpers.engines import submit
from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftprotos import contract
from shiftruntime.engine import grammar_compiler
from shiftruntime.engine.calibration import Interrupted
from shiftruntime.engine.engine import Engine
from shiftruntime.engine.messages import Answer, Call, Grammar, Output, Refused, Shutdown
from shiftruntime.engine.options import EngineOptions
from shiftruntime.worker.messages import Done, StepPlan


class Ranks:
    """One rank that always says 7."""

    def __init__(self) -> None:
        self.last_step = 0
        self.last_answer_seconds = time.monotonic()
        self.begun: list[StepPlan] = []

    def run(self, plan: StepPlan) -> Done:
        self.begin(plan)
        return self.end()

    def begin(self, plan: StepPlan) -> None:
        self.last_step = plan.step
        self.begun.append(plan)

    def end(self) -> Done:
        plan = self.begun.pop(0)
        sampling = [chunk for chunk in plan.chunks if chunk.sample is not None]
        return Done(plan.step, plan.generation, (7,) * len(sampling), (0.0,) * len(sampling))


class Startup:
    """Measures in three steps, between which something may happen."""

    def __init__(self) -> None:
        self.meanwhile: list[Callable[[], None]] = []
        self.steps = 0

    def calibrate(self, *_: object, is_wanted: Callable[[], bool]) -> dict[Gear, CostCurve]:
        for _step in range(3):
            self.steps += 1
            if self.meanwhile:
                self.meanwhile.pop(0)()
            if not is_wanted():
                raise Interrupted
        return {Gear(1, 1): CostCurve((CostPoint(1, 0.25, 0.0, 3),))}


class Loop:
    def __init__(self) -> None:
        self.sent: list[msgspec.Struct] = []
        self.ranks: Any = Ranks()
        gear = Gear(1, 1)
        options = EngineOptions("/nowhere", 1, gear)
        config = SimpleNamespace(group_windows=(None,), vocab_size=64)
        started = SimpleNamespace(
            table=GearTable(gear, {}), dtype="float32", max_model_len=64, num_blocks=16, config=config, self_check=None
        )
        self.startup = Startup()
        parts: tuple[Any, Any, Any] = (self.startup, started, self.ranks)
        self.engine = Engine(options, *parts, self.sent.append)

    def until_idle(self) -> None:
        for _ in range(100):
            if not self.engine.step():
                return
        raise AssertionError("100 steps were not enough")

    def answers(self) -> list[Answer]:
        return [message for message in self.sent if isinstance(message, Answer)]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.engine.grammars.wake.close()
    loop.engine.grammars._waker.close()


def test_the_books_do_not_hold_up_a_request_that_follows_another(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take some 10 ms in a large pool: they are checked in a quiet moment, and once."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checks: list[float] = []
    check = loop.engine.scheduler.check_idle
    monkeypatch.setattr(loop.engine.scheduler, "check_idle", lambda: (checks.append(now), check()))
    loop.until_idle()  # a first step brings the policy's generation to the ranks
    loop.engine.handle(submit("a", (1, 2, 3), 3))
    loop.until_idle()
    assert not checks
    now += 2.0
    loop.until_idle()
    loop.until_idle()
    assert len(checks) == 1


def test_too_many_grammars_at_once_are_an_overload_and_not_a_mistake(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "MAX_WAITING", 0)
    loop.engine.handle(submit("a", (1, 2, 3), 3, grammar=Grammar("regex", "a"), stop_token_ids=(1,)))
    (refused,) = loop.sent
    assert isinstance(refused, Refused)
    assert refused.reason == contract.REFUSED_QUEUE_FULL


def test_a_request_ends_a_measurement_at_once_and_the_old_costs_stay(loop: Loop) -> None:
    """Found in review: the caller was refused, but the request waited for the end, and the costs were replaced."""
    loop.until_idle()
    table = loop.engine.state().gears
    loop.startup.meanwhile = [lambda: loop.engine.handle(submit("a", (1, 2, 3), 2))]
    loop.engine.handle(Call(1, "calibrate"))
    loop.until_idle()
    (answer,) = loop.answers()
    assert (answer.state, answer.error_kind) == (None, contract.REFUSED_BUSY)
    assert loop.startup.steps == 1
    assert loop.engine.state().gears[0].costs == table[0].costs == ()
    assert [message.token_ids for message in loop.sent if isinstance(message, Output)] == [(7,), (7,)]


def test_a_measurement_that_nobody_disturbs_gives_all_who_asked_the_new_costs(loop: Loop) -> None:
    loop.until_idle()
    loop.startup.meanwhile = [lambda: loop.engine.handle(Call(2, "calibrate"))]
    loop.engine.handle(Call(1, "calibrate"))
    loop.until_idle()
    states = {answer.call_id: answer.state for answer in loop.answers()}
    assert list(states) == [1, 2]
    assert all(state and state.gears[0].costs[0].median_seconds == 0.25 for state in states.values())


def test_the_end_of_the_process_does_not_wait_for_a_measurement(loop: Loop) -> None:
    loop.until_idle()
    loop.startup.meanwhile = [lambda: loop.engine.handle(Shutdown())]
    loop.engine.handle(Call(1, "calibrate"))
    loop.engine.step()
    assert loop.startup.steps == 1
    assert loop.answers()[0].error_kind == contract.REFUSED_BUSY


def test_a_budget_that_is_too_near_the_crossover_is_said_in_log_and_state(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody saw that sequence gears could hardly pay."""
    tp, sp = Gear(1, 2), Gear(2, 1)
    points = {tp: (0.01, 0.9), sp: (0.02, 0.5)}
    costs = {gear: CostCurve((CostPoint(1, a, 0.0, 3), CostPoint(1500, b, 0.0, 3))) for gear, (a, b) in points.items()}
    loop.engine._control.table = GearTable(sp, {})
    loop.engine._control.calibrate(lambda: costs)
    state = loop.engine.state()
    assert state.crossover_tokens == 1500
    assert "from 1500 tokens on; a step has at most 2048 tokens" in state.crossover_message
    assert "to 3000 or more" in caplog.text
