"""Whether the steps that fetch models go on, between two looks at the pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shiftprotos import contract

from shiftoperator.snapshot import RuntimeState, Snapshot

_PHASES = (contract.PHASE_FETCH, contract.PHASE_VERIFY)


@dataclass(frozen=True)
class Moved:
    """The farthest that a step was seen, as (phase, bytes), and when it came there, in seconds since 1970."""

    farthest: tuple[int, int]
    at: float


def followed(snapshot: Snapshot, before: Mapping[str, Moved], now: float) -> tuple[Snapshot, dict[str, Moved]]:
    """The snapshot with when each step moved last, and what to remember of it; `before` as of the last look, by uid.

    Only more than ever before is progress: a step that begins again and again gets nowhere.
    """
    found: dict[str, Moved] = {}
    for pod in snapshot.live_pods:
        known = before.get(pod.uid)
        if pod.fetching:
            reached = _reached(snapshot.states.get(pod.uid))
            # At the first look nobody knows since when it stands there.
            known = Moved(reached, now) if known is None or reached > known.farthest else known
        if known is not None and not pod.ready:
            found[pod.uid] = known
    pods = tuple(replace(pod, moved_at=found[pod.uid].at) if pod.uid in found else pod for pod in snapshot.pods)
    return replace(snapshot, pods=pods), found


def _reached(state: RuntimeState | None) -> tuple[int, int]:
    """(0, 0) while nothing is known: that is no progress."""
    phases = {phase.name: phase for phase in state.phases} if state is not None else {}
    reached = [(number, phases[name].num_bytes) for number, name in enumerate(_PHASES) if name in phases]
    return max(reached, default=(0, 0))
