"""Which gear a step runs in: the decision that gives Shift its name, taken anew for every forward step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from shiftcore.costs import NO_CROSSOVER, CostTable, Crossover, find_crossover
from shiftcore.layout import Gear, allowed_gears, tp_gear
from shiftcore.policy import MAX_THRESHOLD_TOKENS, Mode, Policy

# Used while it is not known which gear is cheaper. The published reference shifts at 256 tokens per step by default.
DEFAULT_THRESHOLD_TOKENS = 256

BUDGET_CROSSOVERS = 2  # a budget of fewer leaves too few steps in which the base gear is the cheaper one


class ThresholdSource(StrEnum):
    POLICY = "Policy"
    CALIBRATION = "Calibration"
    DEFAULT = "Default"
    PINNED = "Pinned"


@dataclass(frozen=True)
class GearTable:
    """What a pod knows of its gears: which there are, and what they cost."""

    base: Gear
    costs: CostTable

    @property
    def latency(self) -> Gear:
        return tp_gear(self.base.ranks)

    @property
    def gears(self) -> tuple[Gear, ...]:
        return allowed_gears(self.base)

    @cached_property
    def crossover(self) -> Crossover:
        """Between the tp gear and the base gear."""
        return find_crossover(self.costs, self.latency, self.base)

    @cached_property
    def worth_from(self) -> Mapping[Gear, int]:
        """Per gear other than tp, the step size from which it beats the tp gear beyond doubt, where there is one."""
        found = {gear: find_crossover(self.costs, self.latency, gear).tokens for gear in self.gears}
        return {gear: tokens for gear, tokens in found.items() if tokens is not None}


def budget_note(table: GearTable, max_batched_tokens: int) -> str:
    """A sentence where sequence gears can hardly pay, because the largest step is too near the crossover; else empty.

    The budget is not raised by itself: memory was kept, and costs were measured, for steps up to it.
    """
    first = table.crossover.tokens
    if first is None or max_batched_tokens >= BUDGET_CROSSOVERS * first:
        return ""
    return (
        f"a step has at most {max_batched_tokens} tokens, under {BUDGET_CROSSOVERS} times the crossover of {first}, "
        f"so that {table.base} hardly pays: raise the budget (--max-batched-tokens, spec.engine.maxBatchedTokens) "
        f"to {BUDGET_CROSSOVERS * first} or more"
    )


def choose(tokens: int, table: GearTable, policy: Policy) -> Gear:
    """The gear for a step of ``tokens`` tokens (paper: algorithm 2, with a measured table for its constant).

    A pinned gear or mode wins; then the policy's threshold; then, within the policy's bounds, the cheapest of the tp
    gear and the gears that beat it beyond doubt at this size. Without costs, and with a table inside its own noise,
    which says nothing, the default threshold holds.
    """
    if policy.gear is not None:
        return Gear.parse(policy.gear)
    if policy.mode is Mode.LATENCY:
        return table.latency
    if policy.mode is Mode.THROUGHPUT:
        return table.base
    if not _is_measured(table, policy):
        return table.latency if tokens <= _fixed_threshold(policy) else table.base
    low, high = policy.bounds
    if tokens <= low:
        return table.latency
    worthy = [gear for gear, first in table.worth_from.items() if tokens >= first]
    if tokens <= high:
        worthy.insert(0, table.latency)  # first, so that it wins a tie
    return min(worthy, key=lambda gear: table.costs[gear].seconds(tokens), default=table.base)


def _is_measured(table: GearTable, policy: Policy) -> bool:
    """Whether the table decides, and not one number: some gear is worth a shift, or the base gear surely is not."""
    decided = bool(table.worth_from) or table.crossover.reason == NO_CROSSOVER
    return policy.threshold_tokens is None and decided


def _fixed_threshold(policy: Policy) -> int:
    return policy.threshold_tokens or _bounded(DEFAULT_THRESHOLD_TOKENS, policy)


def _bounded(threshold: int, policy: Policy) -> int:
    low, high = policy.bounds
    return min(max(threshold, low), high)


def shift_points(table: GearTable, policy: Policy) -> tuple[int, ...]:
    """Step sizes after which ``choose`` may take another set of gears, ascending; none when a gear is pinned.

    Between two of them the cost of the step that is chosen grows with its size: it is one gear's, or the least of a
    fixed set of gears. At a shift point it may fall.
    """
    if policy.gear is not None or policy.mode is not Mode.AUTO:
        return ()
    if not _is_measured(table, policy):
        return (_fixed_threshold(policy),)
    low, high = policy.bounds
    return tuple(sorted({low, high, *(first - 1 for first in table.worth_from.values())}))


def threshold_in_use(table: GearTable, policy: Policy) -> tuple[int | None, ThresholdSource]:
    """The threshold that explains ``choose``, the largest step that surely runs the tp gear, and its source."""
    if policy.gear is not None or policy.mode is not Mode.AUTO:
        return None, ThresholdSource.PINNED
    if policy.threshold_tokens is not None:
        return policy.threshold_tokens, ThresholdSource.POLICY
    if _is_measured(table, policy):
        first = min(table.worth_from.values(), default=MAX_THRESHOLD_TOKENS + 1)  # without one every step stays in tp
        return _bounded(first - 1, policy), ThresholdSource.CALIBRATION
    return _bounded(DEFAULT_THRESHOLD_TOKENS, policy), ThresholdSource.DEFAULT
