"""The four numbers that no public source gives: fitted on four published latencies, used everywhere else unchanged."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

ROUNDS = 8  # the last ones change nothing within a millionth


@dataclass(frozen=True)
class Fitted:
    """``linear_of_peak``: share of the peak arithmetic in linear layers. ``host_seconds``: of every step, scheduling to
    sampling. ``all_reduce_of_link``: share of the link that large all-reduces reach. ``all_to_all_seconds``: of one
    all-to-all beyond its bytes, with the copies around it."""

    linear_of_peak: float
    host_seconds: float
    all_reduce_of_link: float
    all_to_all_seconds: float


BOUNDS = {
    "linear_of_peak": (0.05, 1.0),
    "host_seconds": (0.0, 0.05),
    "all_reduce_of_link": (0.05, 1.0),
    "all_to_all_seconds": (0.0, 0.001),
}
# A larger share of a peak means less time.
_FALLING = ("linear_of_peak", "all_reduce_of_link")
Latency = Callable[[Fitted], float]


@cache
def published_fit() -> Fitted:
    """As `shift-sim paper --fit` wrote it."""
    return Fitted(**tomllib.loads(resources.files("shiftsim").joinpath("data/fitted.toml").read_text())["fitted"])


def fit(targets: dict[str, tuple[Latency, float]]) -> Fitted:
    """Solve each number on its own target (a latency as a function of all four, and its value in seconds) in turns.

    Every latency is monotone in its number, so that bisection finds it; the turns converge since each number matters
    most to its own latency. A target that cannot be met leaves its number at a bound.
    """
    fitted = Fitted(**{name: sum(bounds) / 2 for name, bounds in BOUNDS.items()})
    for _ in range(ROUNDS):
        for name, (latency, seconds) in targets.items():
            fitted = _bisect(fitted, name, latency, seconds)
    return fitted


def _bisect(fitted: Fitted, name: str, latency: Latency, seconds: float) -> Fitted:
    low, high = BOUNDS[name]
    for _ in range(34):
        middle = (low + high) / 2
        slow = latency(replace(fitted, **{name: middle})) > seconds
        if slow == (name in _FALLING):
            low = middle
        else:
            high = middle
    return replace(fitted, **{name: (low + high) / 2})
