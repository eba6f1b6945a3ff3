"""One process fetches, the others are told how far it is; its end, however it comes, frees the way."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shiftruntime.errors import StartupError
from shiftruntime.models.fetch import Stopped
from shiftruntime.models.fetch.lock import Report, locked

HOLDER = """
import sys, threading
from pathlib import Path
from shiftruntime.models.fetch.lock import Report, locked
with locked(Path(sys.argv[1]), Report(), threading.Event()) as told:
    told.fetched(30, 100)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_one_that_waits_sees_how_far_the_holder_is_and_gets_the_lock_when_it_is_killed(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with holder(tmp_path / ".lock") as process:

        def progress(done: int, total: int) -> None:
            seen.append((done, total))
            process.kill()

        with locked(tmp_path / ".lock", Report(progress), threading.Event()):
            pass
    assert seen == [(30, 100)]


def test_a_holder_that_stands_still_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftruntime.models.fetch.lock._STALL_SECONDS", 1.0)
    with (
        holder(tmp_path / ".lock"),
        pytest.raises(StartupError, match="made no progress for 1 s; end that pod"),
        locked(tmp_path / ".lock", Report(), threading.Event()),
    ):
        pass


def test_waiting_ends_when_it_should(tmp_path: Path) -> None:
    stop, began = threading.Event(), time.monotonic()
    with (
        holder(tmp_path / ".lock"),
        pytest.raises(Stopped),
        locked(tmp_path / ".lock", Report(lambda done, total: stop.set()), stop),
    ):
        pass
    assert time.monotonic() - began < 60


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    with (
        pytest.raises(StartupError, match=r"\.lock: its file system has no locks .* use a claim whose file system"),
        locked(tmp_path / ".lock", Report(), threading.Event()),
    ):
        pass
