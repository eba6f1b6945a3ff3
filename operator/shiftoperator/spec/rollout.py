"""`spec.rollout`: how pods are replaced."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from shiftprotos import contract

from shiftoperator.errors import InvalidSpecError

TIME = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]+)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


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
    if "restartedAt" in asked and not _is_time(asked["restartedAt"]):
        raise InvalidSpecError(
            f"rollout.restartedAt {asked['restartedAt']!r} is no time; write it as 2026-01-31T12:00:00Z"
        )
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


def _is_time(said: Any) -> bool:
    if not isinstance(said, str) or not TIME.fullmatch(said):
        return False
    try:
        datetime.fromisoformat(said.upper())
    except ValueError:
        return False
    return True
