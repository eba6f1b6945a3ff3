"""The step loop over ranks that only answer: what needs no process to be seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from helpers.engines import submit
from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftprotos import contract
from shiftruntime.engine import grammar_compiler
from shiftruntime.engine.engine import Engine
from shiftruntime.engine.messages import Grammar, Refused
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


class Loop:
    def __init__(self) -> None:
        self.sent: list[msgspec.Struct] = []
        self.ranks: Any = Ranks()
        gear = Gear(1, 1)
        options = EngineOptions("/nowhere", 1, gear)
        config = SimpleNamespace(group_windows=(None,), vocab_size=64)
        started: Any = SimpleNamespace(
            table=GearTable(gear, {}), max_model_len=64, num_blocks=16, config=config, self_check=None
        )
        startup: Any = None
        self.engine = Engine(options, startup, started, self.ranks, self.sent.append)

    def until_idle(self) -> None:
        for _ in range(100):
            if not self.engine.step():
                return
        raise AssertionError("100 steps were not enough")


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
