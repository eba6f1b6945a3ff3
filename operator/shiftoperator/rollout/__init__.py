"""Which revision of the pods should run: that of the spec, or the last good one when that of the spec is bad.

A revision is a rendered pod template, named by its hash and stored in a ControllerRevision. What was decided stands in
`status.rollout`, written before the Deployment follows, so that any operator comes to the same answer at any point.
The user's spec is never edited; a revision that was rejected counts until the spec asks for another.
"""

from shiftoperator.rollout.bounds import gpus_per_pod, largest_pod_gpus, leaving_seconds, paused, surge
from shiftoperator.rollout.judge import judge
from shiftoperator.rollout.known import (
    Revisions,
    begins,
    can_go_back,
    deployed,
    next_number,
    refusal,
    revisions,
    rolling,
    serving,
    stored,
)
from shiftoperator.rollout.seen import Seen, seen

__all__ = [
    "Revisions",
    "Seen",
    "begins",
    "can_go_back",
    "deployed",
    "gpus_per_pod",
    "judge",
    "largest_pod_gpus",
    "leaving_seconds",
    "next_number",
    "paused",
    "refusal",
    "revisions",
    "rolling",
    "seen",
    "serving",
    "stored",
    "surge",
]
