"""What takes minutes of waiting, as a process beside the other tests of its tier: rest, and outages of an API server.

python long_waits.py FOLDER     writes FOLDER/found.json at its end
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Found:
    writes: dict[str, int]  # beside renewals of the Lease
    renewals: int
    outages: dict[str, Recovery]

    @classmethod
    def read(cls, path: Path) -> Found:
        told = json.loads(path.read_text())
        outages = {name: Recovery(**recovery) for name, recovery in told["outages"].items()}
        return cls(told["writes"], told["renewals"], outages)


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

    def found(self) -> Found:
        code = self._process.wait(REST_SECONDS + _PATIENCE_SECONDS)
        assert code == 0, self._log.read_text(errors="replace")[-5000:]
        return Found.read(self._folder / "found.json")

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10.0)


def _rest(kube: Path, folder: Path) -> tuple[dict[str, int], int]:
    with control_plane(kube, folder / "rest") as plane, Kubelet(plane) as kubelet:
        plane.create_namespace("rest")
        log = folder / "rest.log"
        writes, renewals = writes_at_rest(plane, kubelet, "rest", log, REST_SECONDS, **DEFAULT_PACE)
    return dict(writes), renewals


def _outages(kube: Path, folder: Path) -> dict[str, Recovery]:
    """One after the other: a control plane has its price."""
    found = {}
    for name in OUTAGES:
        with control_plane(kube, folder / name) as plane:
            plane.create_namespace(name)
            found[name] = outage(plane, name, folder / f"{name}.log", OUTAGE_SECONDS, name == "ended")
    return found


def main() -> None:
    folder, kube = Path(sys.argv[1]), find_binary()
    assert kube is not None, "whoever starts this has looked"
    with ThreadPoolExecutor(max_workers=2) as pool:
        resting, going = pool.submit(_rest, kube, folder), pool.submit(_outages, kube, folder)
        outages: dict[str, Any] = {name: asdict(recovery) for name, recovery in going.result().items()}
        writes, renewals = resting.result()
    (folder / "found.json").write_text(json.dumps({"writes": writes, "renewals": renewals, "outages": outages}))


if __name__ == "__main__":
    main()
