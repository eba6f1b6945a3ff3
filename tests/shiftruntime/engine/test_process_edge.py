"""What the front end hears when the engine process ends for a reason that nobody has foreseen."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from shiftcore.layout import Gear
from shiftprotos import contract
from shiftruntime.engine import __main__ as process
from shiftruntime.engine.messages import Fatal, FromEngine
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.start_message import Start
from shiftruntime.errors import ShiftError
from shiftruntime.worker.frames import FrameSocket


class Ranks:
    """None at all."""

    def __init__(self, *_: object) -> None:
        self.closed: list[bool] = []
        made.append(self)

    def close(self, failed: bool) -> None:
        self.closed.append(failed)


made: list[Ranks] = []


def run(monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[type[BaseException], Any]:
    """The engine's way to its end when its start-up raises ``error``: what it raises then, and its last message."""

    def fails(*_: object) -> None:
        raise error

    made.clear()
    monkeypatch.setattr(process, "RankGroup", Ranks)
    monkeypatch.setattr(process, "Startup", fails)
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    options = EngineOptions("/nowhere", 2, Gear(2, 1))
    with ours, theirs:
        with pytest.raises(Exception) as caught:
            process._run(options, FrameSocket(theirs, Start))
        theirs.shutdown(socket.SHUT_WR)
        return caught.type, FrameSocket(ours, FromEngine).receive()


def test_a_broken_expectation_is_told_with_its_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found in review: streams ended with "RankFailed: the engine process ended unexpectedly"."""
    raised, last = run(monkeypatch, AssertionError("free 3 and cached 4 are not 8 blocks"))
    assert raised is ShiftError
    assert isinstance(last, Fatal)
    assert last.reason == contract.REASON_INTERNAL
    assert "AssertionError: free 3 and cached 4 are not 8 blocks" in last.message
    assert "Traceback" in caplog.text
    assert made[0].closed == [True]


@pytest.mark.parametrize("error", [process.FrontEndGone(), BrokenPipeError()])
def test_a_front_end_that_is_gone_is_told_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert run(monkeypatch, error) == (type(error), None)
    assert made[0].closed == [False]
