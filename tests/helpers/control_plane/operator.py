"""The operator as a process that serves one namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 20.0
# Short, so that a test does not wait for the next look.
CADENCE = {"SHIFT_RESYNC_SECONDS": "1", "SHIFT_POLL_SECONDS": "0.5", "SHIFT_LEASE_SECONDS": "5"}


@dataclass(frozen=True)
class Operator:
    process: subprocess.Popen[bytes]
    log_path: Path
    user: str

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


@contextmanager
def operator(kubeconfig: Path, user: str, namespace: str, log: Path, **environment: str) -> Iterator[Operator]:
    """Must end by itself when it is told to."""
    variables = {
        **os.environ, **CADENCE, "KUBECONFIG": str(kubeconfig), "SHIFT_WATCH_NAMESPACES": namespace,
        "SHIFT_NAMESPACE": namespace, "SHIFT_OPS_PORT": "0", "SHIFT_IDENTITY": user, **environment,
    }  # fmt: skip
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "shiftoperator"],
            env=variables, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield Operator(process, log, user)
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0, log.read_text(errors="replace")[-5000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_SECONDS)
