"""The failure scenarios at full count, as tests/campaign.py runs them: (seed, scale) -> Outcome."""

from __future__ import annotations

from helpers.campaign_outcome import Outcome
from helpers.failures import bit_flips, cancels, coverage_fuzz, drains, overload, pools, signals
from helpers.failures import outcome as scenario


def strikes(seed: int, scale: float) -> Outcome:
    return _report(signals.run(_scaled(72, scale), seed), "signals")


def cancelled_streams(seed: int, scale: float) -> Outcome:
    return _report(cancels.run(_scaled(500, scale), seed), "streams")


def small_pools(seed: int, scale: float) -> Outcome:
    return _report(pools.small_pools(_scaled(24, scale), seed), "requests")


def never_fits(seed: int, scale: float) -> Outcome:
    return _report(pools.never_fits(_scaled(100, scale), seed), "requests")


def drained_pods(seed: int, scale: float) -> Outcome:
    return _report(drains.run(_scaled(24, scale), seed), "SIGTERMs")


def overloaded_pod(seed: int, scale: float) -> Outcome:
    """Ten times the load for two minutes; the seed plays no part."""
    return _report(overload.run(seconds=max(10.0, 120.0 * scale)), "requests")


def flipped_bits(seed: int, scale: float) -> Outcome:
    return _report(bit_flips.run(_scaled(200, scale), seed), "bits")


def slow_step(seed: int, scale: float) -> Outcome:
    """A step of 30 s under two busy loops, with the real stall limit; the seed plays no part."""
    return _report(pools.slow_is_not_dead(max(12.0, 30.0 * scale), 10.0, layers=8, busy_loops=2), "steps")


def fuzzed_bytes(seed: int, scale: float) -> Outcome:
    return _report(coverage_fuzz.run(_scaled(400_000, scale), seed), "inputs")


def _scaled(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def _report(found: scenario.Outcome, unit: str) -> Outcome:
    measured = (
        f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}" for key, value in found.notes.items()
    )
    return Outcome(found.injected, unit, len(found.bad), (*found.bad[:20], *measured))
