"""Who leaves at a scale-in."""

from __future__ import annotations

from shiftcore.scaling.model import PodLoad


def least_loaded(pods: tuple[PodLoad, ...], count: int) -> tuple[str, ...]:
    """Names of the pods that are emptied soonest; between equals the one that is ready for the shortest time leaves:
    the others know more prefixes. `pods`: longest ready first."""
    youngest_first = list(pods)[::-1]
    ranked = sorted(youngest_first, key=lambda p: (p.running_requests + p.waiting_requests, p.kv_used_fraction))
    return tuple(pod.name for pod in ranked[:count])
