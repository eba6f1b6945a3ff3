"""Demand against the capacity of the throughput gear."""

from __future__ import annotations

import math

from shiftcore.scaling.model import Limits, PodLoad


def demand(limits: Limits, pods: tuple[PodLoad, ...]) -> float:
    """Tokens per second that arrive, are made, or wait and are to be worked off in time."""
    return sum(pod.demand_tokens_per_second(limits.wait_seconds) for pod in pods)


def utilisation(limits: Limits, pods: tuple[PodLoad, ...]) -> float | None:
    """Demand over throughput capacity of all pods; None when a capacity is not known."""
    capacity = sum(pod.capacity_tokens_per_second for pod in pods)
    if not pods or any(pod.capacity_tokens_per_second <= 0 for pod in pods):
        return None
    return demand(limits, pods) / capacity


def throughput_share(pods: tuple[PodLoad, ...]) -> float:
    """Share of recent tokens in the throughput gear, weighted by what each pod makes."""
    weights = [pod.prompt_tokens_per_second + pod.output_tokens_per_second for pod in pods]
    total = sum(weights)
    if total <= 0:
        return sum(pod.throughput_share for pod in pods) / len(pods) if pods else 1.0
    return sum(pod.throughput_share * weight for pod, weight in zip(pods, weights, strict=True)) / total


def pods_needed(limits: Limits, pods: tuple[PodLoad, ...]) -> int:
    """Serving pods that bring the utilisation to the high mark or below, if all are like the present mean; 0 when a
    capacity is not known.

    A queue shows that there are too few pods, but not how many: worked off within the TTFT target it would ask for a
    crowd that comes too late. Pods that are ordered stay at least for the scale-in window, and have that long for it.
    """
    if utilisation(limits, pods) is None:
        return 0
    horizon = max(limits.wait_seconds, limits.in_seconds)
    lasting = sum(pod.demand_tokens_per_second(horizon) for pod in pods)
    capacity = sum(pod.capacity_tokens_per_second for pod in pods) / len(pods)
    # The rounding keeps a demand of exactly n pods from asking for n + 1 through the last bit of a division.
    return math.ceil(round(lasting / capacity / limits.high_utilisation, 9))


def percent(fraction: float) -> str:
    """In steps of 5 %: a sentence that changes with every reading would be written to the API every time."""
    return f"{round(fraction * 20) * 5} %"
