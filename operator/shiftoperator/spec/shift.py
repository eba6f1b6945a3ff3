"""`spec.parallelism` and `spec.shift`: the base gear, and when pods leave it; schedules have their own module."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shiftcore import layout
from shiftcore.layout import Gear, LayoutError
from shiftprotos import contract

from shiftoperator.errors import InvalidSpecError

# Above it hardly any step is larger.
DEFAULT_ADAPTIVE_MAX = 8192
POLICIES = ("Auto", "Latency", "Throughput")


@dataclass(frozen=True)
class Policy:
    """The shift policy as a user sets it; the generation is the operator's business."""

    mode: str = "Auto"
    threshold_tokens: int | None = None

    def as_status(self) -> dict[str, Any]:
        status: dict[str, Any] = {"mode": self.mode}
        if self.threshold_tokens is not None:
            status["thresholdTokens"] = self.threshold_tokens
        return status


class AdaptiveMode(StrEnum):
    OFF = "Off"
    RECOMMEND = "Recommend"
    APPLY = "Apply"


class Calibration(StrEnum):
    """When pods measure what a step costs in each gear."""

    EVERY_START = "EveryStart"
    KEEP = "Keep"
    OFF = "Off"


@dataclass(frozen=True)
class Adaptive:
    """Bounds between which the threshold may be moved by what was measured of the targets; tokens per step."""

    mode: AdaptiveMode = AdaptiveMode.OFF
    min_tokens: int = contract.MIN_THRESHOLD_TOKENS
    max_tokens: int = DEFAULT_ADAPTIVE_MAX


def base_gear(parallelism: dict[str, Any]) -> Gear:
    gpus = parallelism.get("gpus", 0)
    if not 1 <= gpus <= contract.MAX_GPUS:
        raise InvalidSpecError(f"parallelism.gpus {gpus} must lie in 1..{contract.MAX_GPUS}")
    try:
        return layout.base_gear(gpus, parallelism.get("sequence"), parallelism.get("tensor"))
    except LayoutError as error:
        raise InvalidSpecError(str(error)) from error


def policy(shift: dict[str, Any]) -> Policy:
    mode, threshold = shift.get("policy", "Auto"), shift.get("thresholdTokens")
    if mode not in POLICIES:
        raise InvalidSpecError(f"shift.policy {mode!r} is unknown; use {', '.join(POLICIES)}")
    lowest, highest = contract.MIN_THRESHOLD_TOKENS, contract.MAX_THRESHOLD_TOKENS
    if threshold is not None and not lowest <= threshold <= highest:
        raise InvalidSpecError(f"shift.thresholdTokens {threshold} must lie in {lowest}..{highest}")
    return Policy(mode, threshold)


def calibration(shift: dict[str, Any]) -> Calibration:
    mode = shift.get("calibration", {}).get("mode", Calibration.EVERY_START)
    if mode not in tuple(Calibration):
        raise InvalidSpecError(f"shift.calibration.mode {mode!r} is unknown; use {', '.join(Calibration)}")
    return Calibration(mode)


def adaptive(spec: dict[str, Any]) -> Adaptive:
    shift, slo = spec.get("shift", {}), spec.get("slo", {})
    asked = shift.get("adaptive", {})
    mode = AdaptiveMode(asked.get("mode", "Off"))
    lowest, highest = (
        asked.get("minTokens", contract.MIN_THRESHOLD_TOKENS),
        asked.get("maxTokens", DEFAULT_ADAPTIVE_MAX),
    )
    if not contract.MIN_THRESHOLD_TOKENS <= lowest <= highest <= contract.MAX_THRESHOLD_TOKENS:
        raise InvalidSpecError(
            f"shift.adaptive.minTokens {lowest} and maxTokens {highest} must be ascending and lie in "
            f"{contract.MIN_THRESHOLD_TOKENS}..{contract.MAX_THRESHOLD_TOKENS}"
        )
    if mode is AdaptiveMode.OFF:
        return Adaptive(mode, lowest, highest)
    if shift.get("policy", "Auto") != "Auto":
        raise InvalidSpecError(f"shift.adaptive moves a threshold, which policy {shift['policy']} has not; use Auto")
    if "ttftMs" not in slo or "tpotMs" not in slo:
        raise InvalidSpecError("shift.adaptive weighs slo.ttftMs against slo.tpotMs; set both")
    return Adaptive(mode, lowest, highest)
