"""Starts and ends long-running processes, and knows its own from a stranger that got the same pid."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from localcluster.errors import ClusterError

STOP_GRACE_SECONDS = 10.0
KILL_SECONDS = 5.0
LOG_TAIL_LINES = 25


@dataclass(frozen=True)
class Record:
    """A process we started. pid and start time together name it; a pid alone is reused by the kernel."""

    name: str
    pid: int
    start_ticks: int
    boot_id: str
    argv: list[str]


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot; None when it is gone or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may contain spaces: fields are counted from the last ")".
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def uptime_seconds(record: Record) -> float:
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return since_boot - record.start_ticks / os.sysconf("SC_CLK_TCK")


class ProcessTable:
    """The records on disk, one file per component."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder
        self.logs = logs

    def load(self, name: str) -> Record | None:
        try:
            return Record(**json.loads((self.folder / f"{name}.json").read_text()))
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.json")) if self.folder.is_dir() else []

    def alive(self, name: str) -> Record | None:
        record = self.load(name)
        if record is None or record.boot_id != boot_id() or start_ticks(record.pid) != record.start_ticks:
            return None
        return record

    def ensure(self, name: str, argv: list[str], environment: dict[str, str] | None = None) -> bool:
        """Runs the component unless it runs already with the same arguments. True when it was started now."""
        running = self.alive(name)
        if running is not None and running.argv == argv:
            return False
        if running is not None:
            self.stop(name)
        self._start(name, argv, environment)
        return True

    def _start(self, name: str, argv: list[str], environment: dict[str, str] | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        log_path = self.logs / f"{name}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # a session of its own: Ctrl-C in the terminal does not reach it
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={**os.environ, **(environment or {})}, preexec_fn=_raise_file_limit,
            )  # fmt: skip
        ticks = start_ticks(process.pid)
        process.returncode = 0  # it outlives this program on purpose: Popen shall not warn that nobody waits for it
        if ticks is None:
            raise ClusterError("ProcessEnded", f"{name} ended at once; its log {log_path} says:\n{self.tail(name)}")
        record = Record(name=name, pid=process.pid, start_ticks=ticks, boot_id=boot_id(), argv=argv)
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(asdict(record)))
        partial.rename(self.folder / f"{name}.json")

    def stop(self, *names: str, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Ends the components together: the API server alone takes longer than all others to leave politely."""
        records = [record for name in names if (record := self.alive(name)) is not None]
        end([(record.pid, record.start_ticks) for record in records], grace_seconds)
        for name in names:
            (self.folder / f"{name}.json").unlink(missing_ok=True)

    def tail(self, name: str) -> str:
        try:
            text = (self.logs / f"{name}.log").read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    def wait(self, name: str, check: Callable[[], str | None], deadline_seconds: float) -> None:
        """Waits until `check` returns None. It returns what is still missing, which the failure quotes."""
        deadline = time.monotonic() + deadline_seconds
        while (missing := check()) is not None:
            if self.alive(name) is None:
                raise ClusterError("ComponentEnded", f"{name} ended while starting; last lines:\n{self.tail(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    "ComponentTimeout",
                    f"{name} not ready after {deadline_seconds:.0f} s ({missing}); last lines of its log "
                    f"{self.logs / name}.log:\n{self.tail(name)}",
                )
            time.sleep(0.1)


def end(targets: list[tuple[int, int]], grace_seconds: float = STOP_GRACE_SECONDS) -> None:
    """SIGTERM, then SIGKILL after the grace, each only while (pid, start ticks) is still the same process."""
    for number, wait_seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, KILL_SECONDS)):
        for pid, _ in _still(targets):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + wait_seconds
        while _still(targets) and time.monotonic() < deadline:
            time.sleep(0.02)
    if stuck := _still(targets):
        pid = stuck[0][0]
        raise ClusterError("ProcessStuck", f"pid {pid} did not end after SIGKILL; see /proc/{pid}/stack")


def _still(targets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    for pid, _ in targets:
        _reap(pid)
    return [(pid, ticks) for pid, ticks in targets if start_ticks(pid) == ticks]


def with_argument(text: str) -> list[tuple[int, int, str]]:
    """Live processes whose command line contains `text`: (pid, start ticks, command line)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks = start_ticks(int(entry.name))
        if text in command and ticks is not None:
            found.append((int(entry.name), ticks, command))
    return found


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by an earlier run of this program: init reaps it


def _raise_file_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
