"""Our containerd, through its `ctr` program: images in, containers out."""

from __future__ import annotations

import subprocess
from pathlib import Path

from localcluster.errors import ClusterError

NAMESPACE = "k8s.io"
IMPORT_SECONDS = 600.0


class Containers:
    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def problem(self) -> str | None:
        if not self.socket.exists():
            return f"{self.socket} is not there yet"
        try:
            self._ctr("version", seconds=5.0)
        except (ClusterError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None

    def images(self) -> dict[str, str]:
        """Name to digest of every image that pods can use."""
        rows = [line.split() for line in self._ctr("images", "list").splitlines()[1:]]
        return {row[0]: row[2] for row in rows}

    def import_image(self, archive: Path) -> None:
        self._ctr("images", "import", str(archive), seconds=IMPORT_SECONDS)

    def delete_all(self) -> None:
        """Removes every task and container; images stay."""
        for task in self._ctr("tasks", "list", "--quiet").split():
            self._try("tasks", "delete", "--force", task)
        for container in self._ctr("containers", "list", "--quiet").split():
            self._try("containers", "delete", container)
        remaining = self._ctr("containers", "list", "--quiet").split()
        if remaining:
            raise ClusterError("ContainersStuck", f"containerd still has {', '.join(remaining[:5])}; see its log")

    def _try(self, *arguments: str) -> None:
        """One of a list of removals: the check at the end counts what stayed, so one failure does not stop the rest."""
        try:
            self._ctr(*arguments)
        except (ClusterError, subprocess.TimeoutExpired) as error:
            print(f"  {error}", flush=True)

    def _ctr(self, *arguments: str, seconds: float = 30.0) -> str:
        command = ["ctr", "--address", str(self.socket), "--namespace", NAMESPACE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode != 0:
            raise ClusterError("ContainerdFailed", f"`{' '.join(command)}`: {done.stderr.strip()[-500:]}")
        return done.stdout
