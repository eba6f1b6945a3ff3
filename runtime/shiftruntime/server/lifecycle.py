"""Where a pod stands between start and end, and the sentence that says so in /readyz, in statuses and in the log."""

from __future__ import annotations

import logging
from enum import StrEnum

import grpc

from shiftruntime.engine.client import EngineFailed
from shiftruntime.engine.messages import PhaseUpdate
from shiftruntime.metrics import RequestMetrics
from shiftruntime.server.refusal import DRAINING, STARTING, Refusal

log = logging.getLogger(__name__)

# A running phase is logged again after this long.
PROGRESS_SECONDS = 10.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Stage(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """One way: starting, ready, draining; failed from any of them."""

    def __init__(self, metrics: RequestMetrics) -> None:
        self.stage = Stage.STARTING
        self.failure: EngineFailed | None = None
        self.phases: dict[str, PhaseUpdate] = {}
        self._metrics = metrics
        self._logged_seconds: dict[str, float] = {}

    @property
    def ready(self) -> bool:
        return self.stage is Stage.READY

    def phase(self, update: PhaseUpdate) -> None:
        """Note and log the progress of start-up."""
        self.phases[update.name] = update
        self._metrics.phase(update.name, update.seconds)
        last = self._logged_seconds.get(update.name)
        if last is None or update.done or update.seconds - last >= PROGRESS_SECONDS:
            self._logged_seconds[update.name] = update.seconds
            fields = {
                "phase": update.name,
                "seconds": round(update.seconds, 3),
                "bytes": update.done_bytes,
                "total_bytes": update.total_bytes,
                "done": update.done,
            }
            log.info("phase %s", describe_phase(update), extra={"fields": fields})

    def become_ready(self) -> None:
        if self.stage is Stage.STARTING:
            self.stage = Stage.READY

    def drain(self) -> None:
        if self.stage is not Stage.FAILED:
            self.stage = Stage.DRAINING

    def fail(self, failure: EngineFailed) -> None:
        self.stage = Stage.FAILED
        self.failure = failure

    def sentence(self) -> str:
        """Why the pod is, or is not, ready."""
        if self.stage is Stage.FAILED and self.failure is not None:
            return f"failed: {self.failure.reason}: {self.failure.message}"
        if self.stage is Stage.STARTING:
            current = [describe_phase(update) for update in self.phases.values() if not update.done]
            return f"starting: {current[-1] if current else 'between phases'}"
        return str(self.stage)

    def refusal(self) -> Refusal:
        """For a call that needs a ready engine while there is none."""
        if self.failure is not None:
            return Refusal(grpc.StatusCode.UNAVAILABLE, self.failure.reason, self.failure.message)
        if self.stage is Stage.DRAINING:
            return Refusal(
                grpc.StatusCode.UNAVAILABLE, DRAINING, "this pod drains and takes no new requests; use another pod"
            )
        return Refusal(grpc.StatusCode.UNAVAILABLE, STARTING, f"this pod is not ready yet ({self.sentence()})")


def describe_phase(update: PhaseUpdate) -> str:
    """``load: 241.3 MiB in 3.2 s`` or, while it runs, ``load: 80.0 MiB of 241.3 MiB after 1.1 s``."""
    size = ""
    if update.done_bytes or update.total_bytes:
        size = f" {human_bytes(update.done_bytes)}"
        if not update.done and update.total_bytes:
            size += f" of {human_bytes(update.total_bytes)}"
    if update.done:
        return f"{update.name}:{size or ' done'} in {update.seconds:.1f} s"
    return f"{update.name}:{size or ' running'} after {update.seconds:.1f} s"


def human_bytes(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"
