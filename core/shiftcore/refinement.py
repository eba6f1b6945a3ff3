"""Where a calibration measures again: sizes are measured a factor of two apart, and gears cross in between.

The bracket of the crossover is halved until it is no wider than a sixteenth of its size. Who measures asks for one size
after the other, and may stop at any: the table holds before and after.
"""

from __future__ import annotations

from math import log2

from shiftcore.gears import GearTable

RESOLUTION = 1 / 16  # of the lower of the two sizes; nearer to the crossover the gears cost nearly the same anyway


def next_size(table: GearTable) -> int | None:
    """The size of step, in tokens, to be measured next in all gears; None when the crossover is known well enough.

    Without a crossover, or where the smallest size shows it, there is nothing to look for: noise is no bracket.
    """
    first = table.crossover.tokens
    if first is None:
        return None
    measured = [{point.tokens for point in table.costs[gear].points} for gear in (table.latency, table.base)]
    low = max((tokens for tokens in measured[0] & measured[1] if tokens < first), default=None)
    if low is None or first - low <= max(1.0, low * RESOLUTION):
        return None
    return _middle(low, first)


def _middle(low: int, high: int) -> int:
    """Of two sizes far apart, where a short budget left sizes out, the power of two that is nearest to both."""
    return (low + high) // 2 if high <= 2 * low else 1 << round(log2(low * high) / 2)
