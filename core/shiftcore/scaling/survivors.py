"""What a scale-in would cost those that stay, in latency.

All demand D moves to `count` pods that run the throughput gear with measured capacity C each: ρ' = D / (count · C).
A step of n tokens costs t0 + n/C, where t0 is the smallest measured step of that gear. In steady state a step computes
what arrived during the one before, n = (D/count) · T(n); so T = t0 / (1 - ρ'). Every running request gets one token of
each step, hence

    TPOT' = max( t0 / (1 - ρ'),  TPOT now · (1 - ρ) / (1 - ρ') )
    TTFT' = TTFT now · (1 - ρ) / (1 - ρ')  +  waiting tokens / (count · C · (1 - ρ'))

The second term of TPOT' scales what is seen today by the same law: it holds what t0 does not, such as long contexts.
Assumed: pods are alike and traffic spreads evenly; the cost of a step is linear in its tokens; the mix of prompts and
output stays; prompts already run the throughput gear. Estimates of a mean are scaled percentiles, so the caller keeps a
margin to the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shiftcore.scaling.demand import utilisation
from shiftcore.scaling.model import Limits, PodLoad


@dataclass(frozen=True)
class Survivors:
    """Estimates for the pods that stay. `fill` is how full their slots or KV cache would be, the worse of both."""

    utilisation: float
    fill: float
    tpot_seconds: float
    ttft_seconds: float


def survivors(limits: Limits, pods: tuple[PodLoad, ...], count: int) -> Survivors | None:
    """None when a capacity is not known. `count` of pods like these stay, at least one."""
    load = utilisation(limits, pods)
    if load is None:
        return None
    after = load * len(pods) / count
    if after >= 1.0:
        return Survivors(after, _fill(pods, count), math.inf, math.inf)
    # More survivors than reporting pods would speed things up; that is not counted on.
    slower = max(1.0, (1.0 - load) / (1.0 - after))
    room = sum(pod.capacity_tokens_per_second for pod in pods) / len(pods) * count * (1.0 - after)
    # Percentiles look back a minute: without a running request they tell of the past.
    tpot = max((pod.tpot_seconds for pod in pods if pod.running_requests), default=0.0)
    ttft = max((pod.ttft_seconds for pod in pods if pod.running_requests), default=0.0)
    step = max(pod.step_seconds for pod in pods)
    return Survivors(
        utilisation=after,
        fill=_fill(pods, count),
        tpot_seconds=max(step / (1.0 - after), tpot * slower),
        ttft_seconds=ttft * slower + sum(pod.waiting_tokens for pod in pods) / room,
    )


def _fill(pods: tuple[PodLoad, ...], count: int) -> float:
    slots = sum(pod.max_running_requests for pod in pods) * count / len(pods)
    running = sum(pod.running_requests for pod in pods)
    kv = sum(pod.kv_used_fraction for pod in pods) / count
    return max(running / slots if slots else 0.0, kv)
