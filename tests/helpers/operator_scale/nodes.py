"""The stand-in for nodes as a process of its own: its pods must not take time from whoever measures.

python nodes.py KUBECONFIG NETWORK      until standard input is closed
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import ControlPlane

from localcluster.api import Api

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class _Attached:
    """To a control plane of another process, as far as a kubelet needs one."""

    user: Path
    network: str

    @property
    def admin(self) -> Api:
        return Api(self.user)

    def kubeconfig(self, *_: Any) -> Path:
        return self.user


@contextmanager
def nodes(plane: ControlPlane) -> Iterator[None]:
    user = plane.kubeconfig("stand-in-nodes", "system:masters")
    with (plane.place.folder / "nodes.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, __file__, str(user), plane.network],
            stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            plane.wait_until("the nodes", lambda: plane.admin.get_or_none("/api/v1/nodes/node-2") is not None)
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_SECONDS)


def main() -> None:
    user, network = sys.argv[1:]
    with Kubelet(_Attached(Path(user), network)):  # type: ignore[arg-type]
        sys.stdin.read()


if __name__ == "__main__":
    main()
