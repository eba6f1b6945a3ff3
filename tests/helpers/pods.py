"""`shift-runtime serve` as a process of its own, on ports of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from helpers.engines import children, is_alive
from helpers.failures.processes import patience
from shiftprotos import contract

T = TypeVar("T")

_START_SECONDS = 90.0
_CALL_SECONDS = 10.0
_OPTIONS = (
    *("--ranks", "2", "--dtype", "float32", "--kv-memory", "4Mi", "--max-batched-tokens", "32", "--threshold", "8"),
    *("--port", "0", "--control-port", "0", "--ops-port", "0"),
)


@dataclass
class Pod:
    process: subprocess.Popen[str]
    termination_log: Path
    lines: list[str] = field(default_factory=list)
    port: int = 0
    ops_port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for(self, holds: Callable[[], T], seconds: float = _START_SECONDS) -> T:
        """Raises TimeoutError, also when the process ended before."""
        deadline = time.monotonic() + seconds * patience()
        while not (value := holds()):
            if self.process.poll() is not None:
                raise TimeoutError(f"the pod ended with {self.process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s:\n{self.log}")
            time.sleep(0.02)
        return value

    def wait_ready(self) -> None:
        self.wait_for(lambda: self.get("/readyz")[0] == 200)

    def get(self, path: str) -> tuple[int, str]:
        """(status, body) of the ops port; status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}{path}", timeout=_CALL_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except OSError:
            return 0, ""

    def pids(self) -> list[int]:
        """Engine and ranks, as far as they run."""
        engines = children(self.process.pid, "shiftruntime.engine")
        return [*engines, *(rank for engine in engines for rank in children(engine))]


@contextmanager
def pod(model: Path, log: Path, *options: str) -> Iterator[Pod]:
    """Listening, and maybe not ready yet. ``options`` come after the defaults and win."""
    environment = {**os.environ, contract.ENV_TERMINATION_LOG: str(log)}
    environment.pop(contract.ENV_CONTROL_TOKEN_FILE, None)
    command = [sys.executable, "-m", "shiftruntime", "serve", str(model), *_OPTIONS, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    started = Pod(process, log)
    stderr = process.stderr
    assert stderr is not None
    reader = threading.Thread(target=lambda: started.lines.extend(stderr), daemon=True)
    reader.start()
    try:
        found = started.wait_for(lambda: re.search(r"inference (\d+), control \d+, ops (\d+)", started.log))
        started.port, started.ops_port = int(found[1]), int(found[2])
        yield started
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        reader.join(30)
        stderr.close()


def still_there(pids: list[int], seconds: float) -> list[int]:
    """Which of some processes outlive ``seconds``."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
