"""What takes minutes of waiting, as a process beside the other tests of its tier: rest, and outages of an API server.

python long_waits.py FOLDER     writes FOLDER/rest.json and FOLDER/outages.json, each at its end
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.at_rest import writes_at_rest
from helpers.at_rest_campaign import DEFAULT_PACE
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import control_plane, find_binary
from helpers.outage import Recovery, outage

REST_SECONDS = 300.0
OUTAGE_SECONDS = 60.0
OUTAGES = ("ended", "stopped")
# Beyond the rest itself, on a machine that has other work.
_PATIENCE_SECONDS = 420.0
_REST, _OUTAGES = "rest.json", "outages.json"


@dataclass(frozen=True)
class Rest:
    writes: dict[str, int]  # beside renewals of the Lease
    renewals: int


class LongWaits:
    """Ends with whoever started it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "long-waits.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, __file__, str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def rest(self) -> Rest:
        return Rest(**self._found(_REST))

    def outages(self) -> dict[str, Recovery]:
        return {name: Recovery(**recovery) for name, recovery in self._found(_OUTAGES).items()}

    def _found(self, part: str) -> dict[str, Any]:
        """What one part came to, whatever became of the other."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(REST_SECONDS + _PATIENCE_SECONDS)
        path = self._folder / part
        assert path.exists(), self._log.read_text(errors="replace")[-5000:]
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10.0)


def _rest(kube: Path, folder: Path) -> dict[str, Any]:
    with control_plane(kube, folder / "rest") as plane, Kubelet(plane) as kubelet:
        plane.create_namespace("rest")
        log = folder / "rest.log"
        writes, renewals = writes_at_rest(plane, kubelet, "rest", log, REST_SECONDS, **DEFAULT_PACE)
    return asdict(Rest(dict(writes), renewals))


def _outages(kube: Path, folder: Path) -> dict[str, Any]:
    """One after the other: a control plane has its price."""
    found = {}
    for name in OUTAGES:
        with control_plane(kube, folder / name) as plane:
            plane.create_namespace(name)
            found[name] = asdict(outage(plane, name, folder / f"{name}.log", OUTAGE_SECONDS, name == "ended"))
    return found


def _write(path: Path, work: Callable[[], dict[str, Any]]) -> None:
    path.write_text(json.dumps(work()))


def main() -> None:
    folder, kube = Path(sys.argv[1]), find_binary()
    assert kube is not None, "whoever starts this has looked"
    with ThreadPoolExecutor(max_workers=2) as pool:
        parts = [
            pool.submit(_write, folder / _REST, partial(_rest, kube, folder)),
            pool.submit(_write, folder / _OUTAGES, partial(_outages, kube, folder)),
        ]
    for part in parts:
        part.result()


if __name__ == "__main__":
    main()
