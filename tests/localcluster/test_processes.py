from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import pytest

from localcluster import processes
from localcluster.errors import ClusterError
from localcluster.processes import ProcessTable

SLEEP = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]


@pytest.fixture
def table(tmp_path: Path) -> ProcessTable:
    return ProcessTable(tmp_path / "processes", tmp_path / "logs")


def wait_for_log(table: ProcessTable, name: str, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in table.tail(name):
        assert time.monotonic() < deadline, f"{name} never wrote {text!r}"
        time.sleep(0.02)


def test_ensure_starts_once_and_stop_ends_it(table: ProcessTable) -> None:
    assert table.ensure("sleeper", SLEEP)
    assert not table.ensure("sleeper", SLEEP)
    record = table.alive("sleeper")
    assert record is not None
    table.stop("sleeper")
    assert processes.start_ticks(record.pid) is None
    assert table.names() == []
    table.stop("sleeper")


def test_ensure_restarts_on_changed_arguments(table: ProcessTable) -> None:
    table.ensure("sleeper", SLEEP)
    first = table.alive("sleeper")
    assert table.ensure("sleeper", [*SLEEP, "changed"])
    second = table.alive("sleeper")
    table.stop("sleeper")
    assert first is not None
    assert second is not None
    assert first.pid != second.pid


def test_a_recycled_pid_is_never_signalled(table: ProcessTable) -> None:
    table.ensure("sleeper", SLEEP)
    record = table.alive("sleeper")
    assert record is not None
    # The same pid with another start time is another process.
    stranger = dataclasses.replace(record, start_ticks=record.start_ticks - 1)
    (table.folder / "sleeper.json").write_text(json.dumps(dataclasses.asdict(stranger)))
    assert table.alive("sleeper") is None
    table.stop("sleeper")
    assert processes.start_ticks(record.pid) == record.start_ticks
    processes.end([(record.pid, record.start_ticks)])


def test_a_record_of_another_boot_is_not_alive(table: ProcessTable) -> None:
    table.ensure("sleeper", SLEEP)
    record = table.alive("sleeper")
    assert record is not None
    (table.folder / "sleeper.json").write_text(json.dumps({**dataclasses.asdict(record), "boot_id": "before"}))
    assert table.alive("sleeper") is None
    processes.end([(record.pid, record.start_ticks)])


def test_stop_kills_what_ignores_sigterm(table: ProcessTable) -> None:
    table.ensure("deaf", STUBBORN)
    wait_for_log(table, "deaf", "deaf")
    record = table.alive("deaf")
    assert record is not None
    table.stop("deaf", grace_seconds=0.2)
    assert processes.start_ticks(record.pid) is None


def test_wait_quotes_the_log_of_a_component_that_ended(table: ProcessTable) -> None:
    table.ensure("fails", [sys.executable, "-c", "import time; time.sleep(0.2); raise SystemExit('no such flag')"])
    with pytest.raises(ClusterError, match="no such flag"):
        table.wait("fails", lambda: "never ready", 20)


def test_wait_names_what_is_missing_at_its_deadline(table: ProcessTable) -> None:
    table.ensure("sleeper", SLEEP)
    try:
        with pytest.raises(ClusterError, match=r"ComponentTimeout: sleeper not ready .*port is closed"):
            table.wait("sleeper", lambda: "port is closed", 0.2)
    finally:
        table.stop("sleeper")


def test_with_argument_finds_by_command_line(table: ProcessTable) -> None:
    marker = f"marker-{os.getpid()}"
    table.ensure("sleeper", [*SLEEP, marker])
    wait_for_log(table, "sleeper", "hello")
    record = table.alive("sleeper")
    assert record is not None
    assert [(pid, ticks) for pid, ticks, _ in processes.with_argument(marker)] == [(record.pid, record.start_ticks)]
    table.stop("sleeper")
