"""Follows the ShiftDeployment: one reading a second, kept as a path of replicas and of phases."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from examples.demo.settings import NAME, NAMESPACE
from localcluster.errors import ClusterError
from localcluster.settings import Settings
from localcluster.tools import kubectl


@dataclass(frozen=True)
class Reading:
    wanted: int
    ready: int
    conditions: dict[str, tuple[str, str, str]]  # type -> (status, reason, message)

    def describe(self, condition: str = "Ready") -> str:
        status, reason, message = self.conditions.get(condition, ("Unknown", "", "no status yet"))
        return f"{condition}={status} {reason}: {message}"


def read(settings: Settings) -> Reading:
    shd: dict[str, Any] = json.loads(kubectl("get", "shd", NAME, "-n", NAMESPACE, "-o", "json", settings=settings))
    status = shd.get("status", {})
    conditions = {
        c["type"]: (c["status"], c.get("reason", ""), c.get("message", "")) for c in status.get("conditions", [])
    }
    return Reading(shd["spec"].get("replicas", 1), status.get("readyReplicas", 0), conditions)


def wait_for(
    settings: Settings, what: str, done: Callable[[Reading], bool], timeout_seconds: float, say: Callable[[str], None]
) -> Reading:
    """Waits and says each change; raises ClusterError with the last condition."""
    deadline = time.monotonic() + timeout_seconds
    last = ""
    while True:
        reading = read(settings)
        text = f"{reading.ready}/{reading.wanted} ready · {reading.describe()}"
        if text != last:
            say(text)
            last = text
        if done(reading):
            return reading
        if time.monotonic() > deadline:
            raise ClusterError("DemoTimeout", f"{what} took longer than {timeout_seconds:.0f} s; {text}")
        time.sleep(1.0)


@dataclass
class ReplicaPath:
    """Records wanted and ready replicas in the background, for example 1 → 2 → 1."""

    settings: Settings
    say: Callable[[str], None]
    wanted: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> ReplicaPath:
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10.0)
        self._look()  # what ended the block may be younger than the thread's last reading

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(1.0)

    def _look(self) -> None:
        try:
            reading = read(self.settings)
        except ClusterError as error:
            self.say(f"no reading: {error}")
        else:
            self._note(reading, time.monotonic() - self._started)

    def _note(self, reading: Reading, seconds: float) -> None:
        changed = False
        for path, value in ((self.wanted, reading.wanted), (self.ready, reading.ready)):
            if not path or path[-1] != value:
                path.append(value)
                changed = True
        if changed:
            why = reading.conditions.get("ScalingActive", ("", "", ""))
            self.say(f"{seconds:5.0f} s  replicas wanted {reading.wanted}, ready {reading.ready} · {why[1]}: {why[2]}")
