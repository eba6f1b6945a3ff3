"""Why pods do not become ready by waiting, and which of them merely wait for another's place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shiftoperator.snapshot import Pod, Snapshot
from shiftoperator.status import reasons
from shiftoperator.status.view import TRUE, View

# The kubelet says the same failure with and without these words, every few seconds.
_BACK_OFF = re.compile(r'Back-off pulling image "[^"]*": (ErrImagePull: )?')


@dataclass(frozen=True)
class Trouble:
    """`failed` when a container ended, else it never ran."""

    reason: str
    message: str
    failed: bool = False


def trouble(view: View) -> Trouble | None:
    """The worst; pods of the present spec first."""
    return next(_troubles(view), None)


def _troubles(view: View) -> Iterator[Trouble]:
    pods = sorted(view.live, key=lambda pod: (pod.template_hash != view.outcome.template_hash, pod.name))
    for pod in pods:
        if pod.failure is not None:
            reason, message = reasons.of_failure(pod.failure.reason, pod.failure.message)
            yield Trouble(reason, f"pod {pod.name}: {message}", failed=True)
    queue = set(unplaced(view.snapshot)) if waiting_for_drain(view.snapshot) else set()
    for pod in pods:
        if pod.obstacle is not None and pod not in queue:
            reason, message = reasons.of_obstacle(pod.obstacle.reason, _BACK_OFF.sub("", pod.obstacle.message))
            yield Trouble(reason, f"pod {pod.name}: {message}")
    refusal = view.deployment_condition("ReplicaFailure")
    if refusal.get("status") == TRUE:
        yield Trouble(reasons.FAILED_CREATE, refusal.get("message") or "pods cannot be created")


def unplaced(snapshot: Snapshot) -> tuple[Pod, ...]:
    """Pods for which the scheduler finds no node."""
    return tuple(
        pod
        for pod in sorted(snapshot.live_pods, key=lambda pod: pod.name)
        if pod.scheduled is False and pod.obstacle is not None and pod.obstacle.reason == reasons.UNSCHEDULABLE
    )


def waiting_for_drain(snapshot: Snapshot) -> str:
    """A sentence when every pod without a node can have the place of one that leaves, else nothing.

    Accelerators are rarely spare: the place of a pod is free only once its last request has ended.
    """
    waiting = unplaced(snapshot)
    leaving = sorted(pod.name for pod in snapshot.pods if pod.draining)
    if not waiting or len(waiting) > len(leaving):
        return ""
    return f"pod {waiting[0].name} waits for the place of pod {leaving[0]}, which ends its requests"
