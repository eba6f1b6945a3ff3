"""A model is fetched as a phase of start-up, with a deadline, and its end is not waited for when it is cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shiftruntime.engine.messages import PhaseUpdate
from shiftruntime.errors import StartupError, model_not_found
from shiftruntime.server.fetch_cli import FetchOptions
from shiftruntime.server.fetch_step import command
from shiftruntime.server.fetching import fetched

MIB = 1 << 20
Report = Callable[[int, int], None]


class SlowHub:
    """Stands for fetch_model: a mebibyte every ten milliseconds until it is told to stop, or nothing after a while."""

    def __init__(self, num_pieces: int, monkeypatch: pytest.MonkeyPatch, num_moving: int | None = None) -> None:
        self._num_pieces = num_pieces
        self._num_moving = num_pieces if num_moving is None else num_moving
        self.ended = threading.Event()
        monkeypatch.setattr("shiftruntime.server.fetching.fetch_model", self.fetch)

    def fetch(
        self,
        uri: str,
        cache: Path,
        progress: Callable[[int, int], None],
        stop: threading.Event,
        limit: int | None,
        checked: Callable[[int, int], None],
    ) -> Path:
        try:
            for piece in range(self._num_pieces):
                if stop.wait(0.01):
                    raise model_not_found("stopped")
                if piece >= self._num_moving:
                    continue
                progress((piece + 1) * MIB, self._num_pieces * MIB)
            return cache / "tiny"
        finally:
            self.ended.set()


@pytest.fixture
def phases() -> list[PhaseUpdate]:
    return []


async def test_a_fetch_shows_as_a_phase_with_bytes(monkeypatch: pytest.MonkeyPatch, phases: list[PhaseUpdate]) -> None:
    SlowHub(5, monkeypatch)
    assert await fetched("hf://team/tiny", "/cache", phases.append) == "/cache/tiny"
    assert {phase.name for phase in phases} == {"fetch"}
    assert [phase.done for phase in phases] == [False] * (len(phases) - 1) + [True]
    assert (phases[-1].done_bytes, phases[-1].total_bytes) == (5 * MIB, 5 * MIB), "the finished phase has its size"
    assert any(0 < phase.done_bytes <= phase.total_bytes == 5 * MIB for phase in phases)


async def test_a_model_that_is_here_has_no_phase(phases: list[PhaseUpdate]) -> None:
    assert await fetched("models/tiny", None, phases.append) == "models/tiny"
    assert await fetched("file:///models/tiny", None, phases.append) == "/models/tiny"
    assert phases == []


async def test_a_fetch_that_stands_still_ends(monkeypatch: pytest.MonkeyPatch, phases: list[PhaseUpdate]) -> None:
    hub = SlowHub(10_000, monkeypatch, num_moving=3)
    with pytest.raises(StartupError) as refused:
        await fetched("hf://team/tiny", "/cache", phases.append, stall_seconds=0.5)
    assert "nothing has come for 0.5 s" in refused.value.message
    assert await asyncio.to_thread(hub.ended.wait, 5)


async def test_a_fetch_may_take_as_long_as_something_comes(
    monkeypatch: pytest.MonkeyPatch, phases: list[PhaseUpdate]
) -> None:
    began = time.monotonic()
    SlowHub(600, monkeypatch)
    assert await fetched("hf://team/tiny", "/cache", phases.append, stall_seconds=4.0) == "/cache/tiny"
    assert time.monotonic() - began > 4.5


async def test_sums_are_a_phase_of_their_own(monkeypatch: pytest.MonkeyPatch, phases: list[PhaseUpdate]) -> None:
    def fetch(uri: str, cache: Path, progress: Report, stop: object, limit: object, checked: Report) -> Path:
        progress(MIB, MIB)
        checked(MIB // 2, MIB)
        return cache / "tiny"

    monkeypatch.setattr("shiftruntime.server.fetching.fetch_model", fetch)
    await fetched("hf://team/tiny", "/cache", phases.append)
    ended = [(phase.name, phase.done_bytes) for phase in phases if phase.done]
    assert ended == [("fetch", MIB), ("verify", MIB)]


async def test_a_cancelled_fetch_ends_its_download(monkeypatch: pytest.MonkeyPatch, phases: list[PhaseUpdate]) -> None:
    hub = SlowHub(10_000, monkeypatch)
    running = asyncio.Event()

    def report(update: PhaseUpdate) -> None:
        phases.append(update)
        if update.done_bytes:
            running.set()

    task = asyncio.create_task(fetched("hf://team/tiny", "/cache", report))
    await asyncio.wait_for(running.wait(), 5)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 30
    assert await asyncio.to_thread(hub.ended.wait, 5)


def test_the_verb_prints_the_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shiftruntime.server.fetch_step.fetch_model", lambda uri, cache, *_: cache / "tiny")
    assert command(FetchOptions("hf://team/tiny", "/cache")) == 0
    assert capsys.readouterr().out == "/cache/tiny\n"


def test_the_verb_says_why_there_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(FetchOptions("gs://bucket/tiny")) == 1
    assert "unknown scheme 'gs'" in capsys.readouterr().err
