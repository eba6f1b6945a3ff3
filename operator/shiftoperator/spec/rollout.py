"""`spec.rollout`: how pods are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shiftprotos import contract

from shiftoperator.errors import InvalidSpecError


class Strategy(StrEnum):
    NO_SURGE = "NoSurge"
    SURGE = "Surge"


@dataclass(frozen=True)
class Rollout:
    strategy: Strategy = Strategy.NO_SURGE
    paused: bool = False
    # A pod of a new revision that is not ready for so long makes the revision a bad one.
    progress_deadline_seconds: int = 1800
    # For so long a pod that ends may finish what it runs.
    drain_seconds: int = contract.DEFAULT_DRAIN_SECONDS
    auto_rollback: bool = True


def rollout(asked: dict[str, Any]) -> Rollout:
    drain = asked.get("drainSeconds", Rollout.drain_seconds)
    if not 0 <= drain <= contract.MAX_DRAIN_SECONDS:
        raise InvalidSpecError(f"rollout.drainSeconds {drain} must lie in 0..{contract.MAX_DRAIN_SECONDS}")
    return Rollout(
        strategy=Strategy(asked.get("strategy", Rollout.strategy)),
        paused=asked.get("paused", False),
        progress_deadline_seconds=asked.get("progressDeadlineSeconds", Rollout.progress_deadline_seconds),
        drain_seconds=drain,
        auto_rollback=asked.get("autoRollback", True),
    )
