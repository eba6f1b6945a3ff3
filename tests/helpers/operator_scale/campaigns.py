"""Many ShiftDeployments under one operator: how late their children follow, how it grows, how it comes back."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.campaign_outcome import Outcome
from helpers.control_plane.apiclient import ApiClient
from helpers.control_plane.operator import Operator
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import HOW_TO_BUILD, ControlPlane, control_plane, example, find_binary
from helpers.control_plane.waiting import collection
from helpers.operator_scale.changes import BASELINE, KINDS, Changes, percentile
from helpers.operator_scale.nodes import nodes

COUNT, CHANGES_PER_SECOND = 500, 10.0
STEADY_SECONDS = 660.0
OUTAGE_SECONDS = 60.0
# Of one: a minute in which the operator has found its pace, which does not count.
_WARM_SECONDS = 60.0
_SAMPLE_SECONDS = 5.0
_CHANGED_AFTERWARDS = 20
# Limits.
P99_SECONDS = 1.0
SLOPE_MIB_PER_MINUTE = 1.0
RECOVERY_SECONDS = 30.0
_CREATED_AT_ONCE = 8
_SETTLE_SECONDS = 600.0
# Its own: what tests make shorter is a multiple of the load.
OWN_PACE = {"SHIFT_RESYNC_SECONDS": "", "SHIFT_POLL_SECONDS": "", "SHIFT_LEASE_SECONDS": ""}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """Of one process, by the second since it was first looked at."""

    pid: int
    seconds: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    async def follow(self) -> None:
        started = time.monotonic()
        while True:
            self._look(time.monotonic() - started)
            await asyncio.sleep(_SAMPLE_SECONDS)

    def _look(self, at: float) -> None:
        status = Path(f"/proc/{self.pid}/status").read_text()
        kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        self.seconds.append(at)
        self.mebibytes.append(int(kibibytes) / 1024)
        self.cpu_seconds.append((int(times[11]) + int(times[12])) / _TICKS)

    def slope(self, last_seconds: float) -> float:
        """Mebibytes per minute."""
        begin = self.seconds[-1] - last_seconds
        kept = [(s, m) for s, m in zip(self.seconds, self.mebibytes, strict=True) if s >= begin]
        return statistics.linear_regression(*zip(*kept, strict=True)).slope * 60

    @property
    def cores(self) -> float:
        return (self.cpu_seconds[-1] - self.cpu_seconds[0]) / (self.seconds[-1] - self.seconds[0])


def operator_scale(seed: int, scale: float) -> Outcome:
    """Bad are changes that never came, and figures beyond their limits."""
    kube = find_binary()
    if kube is None:
        return Outcome(0, "changes", 1, (HOW_TO_BUILD,))
    count, seconds = max(20, round(COUNT * scale)), max(30.0, STEADY_SECONDS * scale)
    with (
        TemporaryDirectory() as folder,
        control_plane(kube, Path(folder) / "plane") as plane,
        nodes(plane),
        _operator(plane, Path(folder)) as operator,
    ):
        return asyncio.run(_run(plane, operator, seed, count, seconds))


@contextmanager
def _operator(plane: ControlPlane, folder: Path) -> Iterator[Operator]:
    plane.create_namespace("scale")
    for claim in ("gemma-270m", "shift-wheels"):
        plane.create_claim("scale", claim)
    kubeconfig = plane.kubeconfig("operator", "system:masters")
    with operator_process(kubeconfig, "operator", "scale", folder / "operator.log", **OWN_PACE) as running:
        yield running


async def _run(plane: ControlPlane, operator: Operator, seed: int, count: int, seconds: float) -> Outcome:
    api = ApiClient(plane.kubeconfig("user", "system:masters"))
    await api.open()
    try:
        started = time.monotonic()
        # As many pods at the beginning as changes of replicas leave on average: memory is to be compared.
        replicas = {f"served-{number:03}": 1 + number % 2 for number in range(count)}
        await _create(api, replicas)
        created = time.monotonic() - started
        print(f"{count} ShiftDeployments ready after {created:.0f} s", flush=True)
        changes = Changes(api, "scale", replicas, seed)
        watching = asyncio.create_task(changes.watch())
        # The deadlines and budgets that changes begin from are what the CRD gives.
        await changes.run(min(_WARM_SECONDS, seconds), CHANGES_PER_SECOND)
        for taken in changes.seconds.values():
            taken.clear()
        usage = Usage(operator.process.pid)
        following = asyncio.create_task(usage.follow())
        await changes.run(seconds, CHANGES_PER_SECOND)
        following.cancel()
        steady = {label: list(taken) for label, taken in changes.seconds.items()}
        print("\n".join(_figures(steady, usage, seconds)), flush=True)
        recovered = await _outage(plane, changes)
        watching.cancel()
        await asyncio.gather(watching, following, return_exceptions=True)
    finally:
        await api.close()
    return _outcome(steady, changes, usage, seconds, recovered, f"{count} ready after {created:.0f} s")


async def _create(api: ApiClient, replicas: Mapping[str, int]) -> None:
    queue = iter(replicas.items())

    async def work() -> None:
        for name, count in queue:
            await api.call("POST", collection("scale"), example(name, replicas=count))

    await asyncio.gather(*(work() for _ in range(_CREATED_AT_ONCE)))
    async with asyncio.timeout(_SETTLE_SECONDS):
        while (ready := await _ready(api)) < len(replicas):
            print(f"{ready} of {len(replicas)} ready", flush=True)
            await asyncio.sleep(3.0)


async def _ready(api: ApiClient) -> int:
    found = (await api.call("GET", f"{collection('scale')}"))["items"]
    conditions = [c for obj in found for c in obj.get("status", {}).get("conditions", ())]
    return sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def _outage(plane: ControlPlane, changes: Changes) -> float:
    """Seconds from the return of the API server until changes of then have come."""
    await asyncio.to_thread(plane.stop_api_server)
    await asyncio.sleep(OUTAGE_SECONDS)
    await asyncio.to_thread(plane.start_api_server)
    return await changes.some(_CHANGED_AFTERWARDS)


def _outcome(
    steady: dict[str, list[float]], changes: Changes, usage: Usage, seconds: float, recovered: float, created: str
) -> Outcome:
    mine = [value for label in KINDS for value in steady[label]]
    wrong = [f"{number} changes of {label} never came" for label, number in changes.lost.items()]
    if (p99 := percentile(mine, 99)) >= P99_SECONDS:
        wrong.append(f"p99 of {p99:.2f} s")
    if (slope := usage.slope(min(600.0, seconds))) >= SLOPE_MIB_PER_MINUTE and seconds >= STEADY_SECONDS:
        wrong.append(f"memory grows by {slope:.2f} MiB a minute")
    if recovered > RECOVERY_SECONDS:
        wrong.append(f"{recovered:.0f} s until it was back")
    notes = [created, *_figures(steady, usage, seconds)]
    notes += [f"API server away for {OUTAGE_SECONDS:g} s: {_CHANGED_AFTERWARDS} changes came within {recovered:.1f} s"]
    return Outcome(len(mine), "changes", len(wrong), (*notes, *wrong))


def _figures(steady: dict[str, list[float]], usage: Usage, seconds: float) -> list[str]:
    mine = [value for label in KINDS for value in steady[label]]
    rows = [("all", mine), *((label, steady[label]) for label in (*KINDS, BASELINE))]
    lines = [
        f"{label}: {len(taken)} changes, p50 {percentile(taken, 50):.3f} s, p95 {percentile(taken, 95):.3f} s, "
        f"p99 {percentile(taken, 99):.3f} s, at most {max(taken, default=0.0):.3f} s"
        for label, taken in rows
    ]
    memory = f"{usage.mebibytes[0]:.0f} to {usage.mebibytes[-1]:.0f} MiB"
    return [
        *lines,
        f"operator: {usage.cores:.2f} cores, {memory}, slope {usage.slope(min(600.0, seconds)):+.2f} MiB a minute",
    ]
