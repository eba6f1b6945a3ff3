"""What is remembered of pods between two looks, for the judge: since when they are held up, and stand still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from shiftoperator.snapshot import Pod, RuntimeState, Snapshot
from shiftoperator.status import reasons

# Name, bytes and whether it is done, of each phase of a start.
Phases = tuple[tuple[str, int, bool], ...]


@dataclass(frozen=True)
class Reached:
    """How far a start was seen, and when it came there, in seconds since 1970."""

    phases: Phases
    at: float


@dataclass(frozen=True)
class Seen:
    """`held`: since when, in seconds since 1970, by uid and reason. `starts`: by uid, of pods that are not ready.

    It can be lost with the operator: a pod then gets the time to be held up, or to stand still, once more.
    """

    held: Mapping[tuple[str, str], float] = field(default_factory=dict)
    starts: Mapping[str, Reached] = field(default_factory=dict)

    def still_since(self, pod: Pod) -> float | None:
        """Since when the start of a pod gets no farther, in seconds since 1970; None while its runtime does not run:
        until then an image is pulled and a model fetched, for as long as that takes. One that does not answer gets no
        farther either."""
        if pod.fetching or not pod.running or not pod.started_at or pod.start_began is None:
            return None
        reached = self.starts.get(pod.uid)
        began = max(datetime.fromisoformat(pod.started_at).timestamp(), pod.start_began)
        return began if reached is None else max(began, reached.at)


def seen(snapshot: Snapshot, before: Seen, now: float) -> Seen:
    """`before` as of the last look."""
    held = [
        (pod.uid, reasons.of_obstacle(pod.obstacle.reason, pod.obstacle.message)[0])
        for pod in snapshot.live_pods
        if pod.obstacle is not None
    ]
    starts: dict[str, Reached] = {}
    for pod in snapshot.live_pods:
        known = before.starts.get(pod.uid)
        phases = _phases(snapshot.states.get(pod.uid)) or (known.phases if known is not None else ())
        if phases and not pod.ready:
            starts[pod.uid] = known if known is not None and known.phases == phases else Reached(phases, now)
    return Seen({what: before.held.get(what, now) for what in held}, starts)


def _phases(state: RuntimeState | None) -> Phases:
    """Empty while nothing is known: that is no progress. Their seconds run on in a start that hangs."""
    return () if state is None else tuple((phase.name, phase.num_bytes, phase.done) for phase in state.phases)
