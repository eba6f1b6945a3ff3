"""Scale-in with chosen pods: mark, drain, wait until they are empty, lower the replicas, see that they are gone.

The mark is an annotation on the pod, written before anything else happens to it. So what is under way can be seen from
the cluster alone, and any operator goes on with it at any point. A pod that drains cannot serve again: if it is to stay
after all, or another pod left in its place, it is deleted, and its Deployment makes a new one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from shiftprotos import contract

from shiftoperator.snapshot import Object, Pod, Snapshot
from shiftoperator.spec import pods_asked, replicas_asked
from shiftoperator.status import reasons

# Below any cost that a user would give.
_DELETION_COST = "-2147483647"


@dataclass(frozen=True)
class Mark:
    """Written on a pod that is to leave. `source` is the number of replicas it was decided at."""

    source: int
    since: float  # seconds since 1970
    reason: str
    message: str

    def annotations(self) -> dict[str, str | None]:
        since = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        told = {"from": self.source, "since": since, "reason": self.reason, "message": self.message}
        text = json.dumps(told, ensure_ascii=False)
        return {contract.ANNOTATION_RETIRING: text, contract.ANNOTATION_DELETION_COST: _DELETION_COST}


NO_MARK: dict[str, str | None] = {contract.ANNOTATION_RETIRING: None, contract.ANNOTATION_DELETION_COST: None}
# What cannot be read was decided at no size: the pod stays, or is replaced if it drains.
_UNREADABLE = Mark(-1, 0.0, "", "")


@dataclass(frozen=True)
class Step:
    """What to do now, in this order; everything empty: wait."""

    reason: str
    message: str
    drain: tuple[Pod, ...] = ()
    lower_to: int | None = None
    delete: tuple[Pod, ...] = ()
    unmark: tuple[Pod, ...] = ()


def mark_of(pod: Pod) -> Mark:
    try:
        told: Object = json.loads(pod.retiring)
        since = datetime.fromisoformat(told["since"]).timestamp()
        return Mark(int(told["from"]), since, str(told["reason"]), str(told["message"]))
    except (ValueError, KeyError, TypeError):
        return _UNREADABLE


def marked(snapshot: Snapshot) -> tuple[Pod, ...]:
    """Pods that are to leave and are still there."""
    return tuple(pod for pod in snapshot.live_pods if pod.retiring)


def remaining_replicas(snapshot: Snapshot) -> int:
    """Pods that will be left: none while suspended, and one that is emptied on purpose is not missed."""
    asked = pods_asked(snapshot.resource["spec"])
    return max(0, asked - sum(mark_of(pod).source == asked for pod in marked(snapshot)))


def step(snapshot: Snapshot, cancelled: str | None, drain_seconds: float, now: float) -> Step:
    """`cancelled`: why the pods should stay; `now`: seconds since 1970. Asks for at least one marked pod."""
    pods, live, replicas = marked(snapshot), snapshot.live_pods, replicas_of(snapshot)
    named = ", ".join(pod.name for pod in pods)
    waiting = _not_lowered(snapshot)
    if not waiting and len(live) > replicas:
        return Step(reasons.PODS_LEAVING, f"replicas are down to {replicas}; pods {named} leave")
    done = tuple(pod for pod in pods if _empty(snapshot, pod) or now - mark_of(pod).since >= drain_seconds)
    if not waiting:
        return _stay(snapshot, pods, done, reasons.ANOTHER_POD_LEFT, f"another pod left in place of {named}")
    if any(mark_of(pod).source != replicas for pod in waiting):
        cancelled = f"the size is {replicas} now and not that at which this was decided"
    if cancelled is not None:
        return _stay(snapshot, pods, done, reasons.SCALE_IN_GIVEN_UP, cancelled)
    drain = tuple(pod for pod in pods if not _drains(snapshot, pod))
    if len(done) == len(pods):
        return Step(reasons.DRAINING, f"pods {named} are empty or had their time", lower_to=replicas - len(waiting))
    message = f"pods {named} take no new requests and finish what they run, at most {drain_seconds:g} s"
    return Step(reasons.DRAINING, message, drain=drain)


def _stay(snapshot: Snapshot, pods: tuple[Pod, ...], done: tuple[Pod, ...], reason: str, message: str) -> Step:
    """Those that do not drain lose their mark; those that do are replaced when they are empty."""
    known = {pod.uid for pod in pods if pod.uid in snapshot.states}
    unmark = tuple(pod for pod in pods if pod.uid in known and not _drains(snapshot, pod))
    delete = tuple(pod for pod in done if pod not in unmark)
    return Step(reason, message, delete=delete, unmark=unmark)


def _not_lowered(snapshot: Snapshot) -> tuple[Pod, ...]:
    """Marked pods whose leaving is not yet asked for; a size that was raised since does not ask for it either."""
    replicas = replicas_of(snapshot)
    return tuple(pod for pod in marked(snapshot) if replicas >= mark_of(pod).source)


def lowered(snapshot: Snapshot) -> Mark | None:
    """Of pods that were asked to leave by us, as far as they are still there."""
    pods, replicas = marked(snapshot), replicas_of(snapshot)
    leave = pods and not _not_lowered(snapshot) and len(snapshot.live_pods) > replicas
    if not leave or not sized_by_us(snapshot):
        return None
    known = [mark for pod in pods if (mark := mark_of(pod)) != _UNREADABLE]
    return known[0] if known else None


def sized_by_us(snapshot: Snapshot) -> bool:
    """Whether the last change of the replicas was our write to /scale. A field is its last writer's, as the API server
    keeps it: a person's `kubectl scale` takes it from us, to whichever size."""
    return any(
        entry.get("manager") == contract.FIELD_MANAGER
        and entry.get("subresource") == "scale"
        and "f:replicas" in (entry.get("fieldsV1") or {}).get("f:spec", {})
        for entry in snapshot.resource["metadata"].get("managedFields") or ()
    )


def replicas_of(snapshot: Snapshot) -> int:
    return replicas_asked(snapshot.resource["spec"])


def _drains(snapshot: Snapshot, pod: Pod) -> bool:
    state = snapshot.states.get(pod.uid)
    return state is not None and state.draining


def _empty(snapshot: Snapshot, pod: Pod) -> bool:
    if not pod.running:
        return True
    state = snapshot.states.get(pod.uid)
    return (
        state is not None and state.draining and state.load.running_requests == 0 and state.load.waiting_requests == 0
    )
