"""Shift policy: what the operator sets on a pod, and the fence that keeps an old policy from replacing a new one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shiftcore.layout import Gear, LayoutError

MIN_THRESHOLD_TOKENS = 1
MAX_THRESHOLD_TOKENS = 1_048_576


class PolicyError(ValueError):
    """A policy that cannot hold; the message names the value and what is allowed."""


class StaleGenerationError(Exception):
    """The policy is older than the one accepted."""


class Mode(StrEnum):
    AUTO = "Auto"
    LATENCY = "Latency"
    THROUGHPUT = "Throughput"


@dataclass(frozen=True)
class Policy:
    """Mode, optional threshold in tokens per step, optional pinned gear (wins over mode), and a generation.

    Bounds keep a threshold that is measured where an operator of the pods trusts it: steps of at most
    ``min_threshold_tokens`` always run the tp gear, steps of more than ``max_threshold_tokens`` never do.
    """

    mode: Mode = Mode.AUTO
    threshold_tokens: int | None = None
    gear: str | None = None
    generation: int = 0
    min_threshold_tokens: int | None = None
    max_threshold_tokens: int | None = None

    def __post_init__(self) -> None:
        for threshold in (self.threshold_tokens, self.min_threshold_tokens, self.max_threshold_tokens):
            if threshold is not None and not MIN_THRESHOLD_TOKENS <= threshold <= MAX_THRESHOLD_TOKENS:
                raise PolicyError(
                    f"threshold {threshold} is outside {MIN_THRESHOLD_TOKENS}..{MAX_THRESHOLD_TOKENS} tokens per step"
                )
        low, high = self.bounds
        if low > high:
            raise PolicyError(f"the bounds of the threshold exclude each other: at least {low} and at most {high}")
        if self.threshold_tokens is not None and not low <= self.threshold_tokens <= high:
            raise PolicyError(f"threshold {self.threshold_tokens} is outside its bounds {low}..{high}")
        if self.generation < 0:
            raise PolicyError(f"generation {self.generation} is negative")
        if self.gear is not None:
            try:
                Gear.parse(self.gear)
            except LayoutError as error:
                raise PolicyError(str(error)) from error

    @property
    def bounds(self) -> tuple[int, int]:
        """Of a threshold that is measured; as wide as can be when none are set."""
        return self.min_threshold_tokens or 0, self.max_threshold_tokens or MAX_THRESHOLD_TOKENS


def accept(current: Policy, new: Policy, gears: tuple[Gear, ...]) -> Policy:
    """The policy in force after ``new`` arrived. Sending the same policy again changes nothing.

    Raises StaleGenerationError for an older generation, PolicyError for another policy under the same generation or a
    gear this pod does not have.
    """
    if new.gear is not None and Gear.parse(new.gear) not in gears:
        raise PolicyError(f"gear {new.gear} is not one of {', '.join(g.name for g in gears)}")
    if new.generation < current.generation:
        raise StaleGenerationError(
            f"generation {new.generation} is older than {current.generation}, which was accepted"
        )
    if new.generation == current.generation and new != current:
        raise PolicyError(f"generation {new.generation} was accepted with another policy; raise the generation")
    return new
