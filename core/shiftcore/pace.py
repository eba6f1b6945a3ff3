"""How large a step may be when those who already read must not wait: chunk size and gear, chosen together.

A step with decodes and a prefill chunk makes every reader wait for the whole step. Under a target for the time per
output token (TPOT) the chunk is cut so that the step ends in time, in the gear in which it can be largest.
"""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.gears import GearTable, choose, shift_points
from shiftcore.layout import Gear
from shiftcore.policy import Policy


@dataclass(frozen=True)
class Mix:
    """What a step would be made of: decodes, and prompt tokens of which some may be cut off."""

    decodes: int  # one token each
    decode_context: int  # tokens that all decodes together look back at
    prefill_context: int  # tokens that each prefill token looks back at, about

    def pairs(self, tokens: int) -> int:
        """Pairs of a token and one it looks back at, in a step of ``tokens`` tokens."""
        return self.decode_context + max(0, tokens - self.decodes) * self.prefill_context


@dataclass(frozen=True)
class Pace:
    """A token budget for the step, the gear in which it holds the target, and how long it should take."""

    tokens: int
    gear: Gear
    seconds: float
    holds: bool  # False: not even the smallest step ends in time


def pace(
    mix: Mix, table: GearTable, policy: Policy, *, target_seconds: float, max_tokens: int, min_prefill: int
) -> Pace | None:
    """The largest step that ends within ``target_seconds``; None while the gears' costs are not known.

    Prompts always advance by ``min_prefill`` tokens, also when the target cannot be held: a target must not starve
    them. Policy and pins hold as in ``choose``: between two shift points the gear is fixed and the cost grows with the
    size, so that each range is searched by bisection, from the largest sizes down.
    """
    smallest = min(max_tokens, mix.decodes + min_prefill)
    if any(gear not in table.costs for gear in table.gears):
        return None
    points = [n for n in shift_points(table, policy) if smallest <= n < max_tokens]
    for first, last in _ranges(smallest, points, max_tokens):
        found = _largest(mix, table, policy, first, last, target_seconds)
        if found is not None:
            return found
    return _step(mix, table, policy, smallest, target_seconds)


def _ranges(smallest: int, points: list[int], largest: int) -> list[tuple[int, int]]:
    """Sizes between shift points, the largest first; a shift point is the last size of its range."""
    firsts = [smallest, *(n + 1 for n in points)]
    lasts = [*points, largest]
    return list(zip(firsts, lasts, strict=True))[::-1]


def _largest(mix: Mix, table: GearTable, policy: Policy, first: int, last: int, target_seconds: float) -> Pace | None:
    best = None
    while first <= last:
        middle = (first + last) // 2
        step = _step(mix, table, policy, middle, target_seconds)
        if step.holds:
            best, first = step, middle + 1
        else:
            last = middle - 1
    return best


def _step(mix: Mix, table: GearTable, policy: Policy, tokens: int, target_seconds: float) -> Pace:
    gear = choose(tokens, table, policy)
    seconds = table.costs[gear].seconds(tokens, mix.pairs(tokens))
    return Pace(tokens, gear, seconds, seconds <= target_seconds)
