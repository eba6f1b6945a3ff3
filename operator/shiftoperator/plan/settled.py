"""Whether an object is as it was asked for, or is to be looked at again soon whatever else there is to do."""

from __future__ import annotations

from enum import Enum, auto

from shiftoperator import rollout
from shiftoperator.snapshot import Snapshot
from shiftoperator.spec import pods_asked


class Found(Enum):
    """What a pass found."""

    GONE = auto()
    # What no event tells may still happen to it: a deadline, a quota that refuses pods, a Secret that comes.
    UNSETTLED = auto()
    SETTLED = auto()


def found(snapshot: Snapshot, refused: bool) -> Found:
    """`refused`: the last full pass could not do what the resource asks for."""
    if refused:
        return Found.UNSETTLED
    known, live, asked = rollout.revisions(snapshot), snapshot.live_pods, pods_asked(snapshot.resource["spec"])
    serves = len(live) == asked and all(pod.ready for pod in live)
    # A revision is good a while after all of its pods are ready, and only a pass that looks finds that.
    good = known.good == known.running or not asked
    unlike = rollout.refusal(known) is not None or rollout.rolling(snapshot)
    return Found.SETTLED if serves and good and not unlike else Found.UNSETTLED
