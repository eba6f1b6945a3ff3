"""What makes a revision a bad one, and when one is good: the first rule of a chain that has something to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shiftprotos import contract

from shiftoperator import manifests
from shiftoperator.rollout.bounds import leaving_seconds, surge
from shiftoperator.rollout.known import Revisions, can_go_back, deployed, deployment, revisions, rolling
from shiftoperator.rollout.seen import Seen
from shiftoperator.snapshot import MESSAGE_LIMIT, Object, Pod, Snapshot
from shiftoperator.spec import Spec
from shiftoperator.status import Rejected, reasons
from shiftoperator.status.trouble import waiting_for_drain

# In `status.rollout.rejected`, beside the reasons of pods that fail or are held up.
PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"

# For so long the extra pod of a surge may look for a node.
SURGE_SECONDS = 30.0
# What keeps a container from starting may pass by itself: a Secret that comes a moment later.
HELD_SECONDS = 30.0
# While nobody serves, a revision without a node gets the time of a start, and at least this.
NO_PLACE_SECONDS = 60.0
# While nobody serves, a start may stand still for so many of these times: another model may need longer in a phase
# that shows no bytes. Whole starts are not compared: a larger model takes longer, as does a disk that reads it anew.
STANDSTILLS = 3
# Of a failure that may pass by itself, while others serve.
FAILURES = 2

# A second start of the same pod ends in the same way.
_FINAL = {
    contract.REASON_INVALID_LAYOUT,
    contract.REASON_MODEL_NOT_FOUND,
    contract.REASON_MODEL_DAMAGED,
    contract.REASON_MODEL_UNSUPPORTED,
    contract.REASON_OUT_OF_MEMORY,
    contract.REASON_INVALID_ARGUMENT,
    contract.REASON_SELF_CHECK_FAILED,
}
_NO_NODE = {reasons.UNSCHEDULABLE, reasons.SCHEDULING_GATED}


def judge(snapshot: Snapshot, spec: Spec, now: float, now_text: str, seen: Seen) -> Revisions:
    """What should run from now on. `now`: seconds since 1970, `now_text` the same as the status has it; `seen` with
    what this snapshot shows."""
    known = revisions(snapshot)
    case = _Case(snapshot, spec, known, now, seen)
    if _serves(case):
        known = replace(known, good=known.running)
    elif _may_be_rejected(case):
        verdict = next((found for rule in _RULES if (found := rule(case)) is not None), None)
        if verdict is not None:
            reason, message = verdict
            rejected = Rejected(known.target, reason, message[:MESSAGE_LIMIT], now_text, known.good, tried=True)
            return replace(known, rejected=rejected, no_surge="")
    return replace(known, no_surge=known.running) if _finds_no_room(case) else known


@dataclass(frozen=True)
class _Case:
    snapshot: Snapshot
    spec: Spec
    known: Revisions
    now: float
    seen: Seen = field(default_factory=Seen)

    @property
    def pods(self) -> tuple[Pod, ...]:
        """Of the revision that should run, by name."""
        found = [pod for pod in self.snapshot.live_pods if pod.template_hash == self.known.running]
        return tuple(sorted(found, key=lambda pod: pod.name))

    @property
    def unready(self) -> tuple[Pod, ...]:
        """Of these. One that is emptied at a scale-in is not ready either, and starts no more."""
        return tuple(pod for pod in self.pods if not pod.ready and not pod.retiring)

    @property
    def works(self) -> bool:
        """Whether a pod of it is ready: then others without a node lack room and nothing else."""
        return any(pod.ready for pod in self.pods)

    @property
    def leaving_seconds(self) -> int:
        return leaving_seconds(self.snapshot, self.spec, self.known)

    def seconds_unready(self, pod: Pod) -> float:
        """A pod without a node may have waited for one that ended its requests."""
        if pod.start_began is None:
            return 0.0
        waited = self.now - pod.start_began
        return waited if pod.scheduled else waited - self.leaving_seconds

    def seconds_ready(self, pod: Pod) -> float:
        return float(manifests.SETTLE_SECONDS) if pod.changed_at is None else self.now - pod.changed_at

    @property
    def start_seconds(self) -> float:
        """Of the slowest start that is known; 0 without one."""
        return float(self._slowest.get("seconds", 0))

    @property
    def runtime_seconds(self) -> float:
        """Of that start, once its model was there."""
        phases = self._slowest.get("phases") or ()
        fetched = sum(phase["seconds"] for phase in phases if phase["name"] == contract.PHASE_FETCH)
        return self.start_seconds - float(fetched)

    @property
    def _slowest(self) -> Object:
        found: Object = self.snapshot.status.get("slowestStart") or {}
        return found


def _serves(case: _Case) -> bool:
    """Whether its pods have proved this revision.

    One that fails while it is on trial takes back the whole service, so a trial must end where pods are missing for
    good: for want of room, by a quota, or as others come all the time.
    """
    ready = [case.seconds_ready(pod) for pod in case.pods if pod.ready]
    if not case.spec.pods or not ready or _disagrees(case) is not None:
        return False
    alone = len(case.pods) == len(case.snapshot.live_pods)
    without_room = [_lacks_room(case, pod) for pod in case.unready]
    settled = min(ready) >= manifests.SETTLE_SECONDS and case.spec.pods <= len(case.pods)
    if alone and settled and all(without_room):
        return True
    # The rollout is over, or cannot go on; and a pod that was made when this one was ready has had its time.
    over = alone or any(without_room) or _none_can_be_made(case)
    return over and max(ready) >= case.spec.rollout.progress_deadline_seconds


def _lacks_room(case: _Case, pod: Pod) -> bool:
    """Whether it finds no node, rather than waits for one that is about to be free."""
    return not pod.scheduled and case.seconds_unready(pod) >= NO_PLACE_SECONDS


def _may_be_rejected(case: _Case) -> bool:
    rollout, known = case.spec.rollout, case.known
    willing = rollout.auto_rollback and not rollout.paused and case.spec.pods > 0
    return willing and known.rejected is None and can_go_back(case.snapshot, known)


# --- what makes a revision a bad one: the first rule that has something to say ---

_Verdict = tuple[str, str]


def _fails(case: _Case) -> _Verdict | None:
    alone = not case.snapshot.ready_pods
    for pod in case.unready:
        if pod.failure is None:
            continue
        reason, message = reasons.of_failure(pod.failure.reason, pod.failure.message)
        if pod.fetching and reason not in _FINAL:
            continue  # it goes on where it was; the deadline counts from when it stands still
        if alone or reason in _FINAL or pod.num_failures >= FAILURES:
            return reason, f"pod {pod.name}: {message}"
    return None


def _disagrees(case: _Case) -> _Verdict | None:
    for pod in case.pods:
        state = case.snapshot.states.get(pod.uid)
        if state is not None and state.self_check is not None and not state.self_check.passed:
            return contract.REASON_SELF_CHECK_FAILED, f"pod {pod.name}: {state.self_check.message}"
    return None


def _is_held(case: _Case) -> _Verdict | None:
    for pod in case.unready:
        if pod.obstacle is None or pod.obstacle.reason in _NO_NODE:
            continue
        reason, message = reasons.of_obstacle(pod.obstacle.reason, pod.obstacle.message)
        # Not from the pod's start on: an image may have been pulled for minutes before.
        seconds = case.now - case.seen.held.get((pod.uid, reason), case.now)
        if reason != reasons.CONTAINER_WAITING and seconds >= HELD_SECONDS:
            return reason, f"pod {pod.name}: {message}"
    return None


def _has_no_place(case: _Case) -> _Verdict | None:
    """While somebody serves, the whole deadline is there to find a node."""
    if case.snapshot.ready_pods:
        return None
    patience = min(max(case.start_seconds, NO_PLACE_SECONDS), case.spec.rollout.progress_deadline_seconds)
    for pod in case.unready:
        unplaced = pod.obstacle is not None and pod.obstacle.reason == reasons.UNSCHEDULABLE
        if pod.obstacle is not None and unplaced and case.seconds_unready(pod) >= patience:
            return reasons.UNSCHEDULABLE, f"pod {pod.name}: {pod.obstacle.message}"
    return None


def _stands_still(case: _Case) -> _Verdict | None:
    """While nobody serves. A start that goes on has the whole deadline, and so has one while starts are not known."""
    if case.snapshot.ready_pods or not case.start_seconds:
        return None
    patience = STANDSTILLS * max(case.runtime_seconds, NO_PLACE_SECONDS)
    for pod in case.unready:
        since = case.seen.still_since(pod)
        if since is not None and case.now - since >= patience:
            return PROGRESS_DEADLINE_EXCEEDED, (
                f"the start of pod {pod.name} has got no farther for {patience:.0f} s while no pod serves; "
                f"the slowest known took {case.runtime_seconds:.0f} s"
            )
    return None


def _is_late(case: _Case) -> _Verdict | None:
    deadline = case.spec.rollout.progress_deadline_seconds
    for pod in case.unready:
        gated = pod.obstacle is not None and pod.obstacle.reason == reasons.SCHEDULING_GATED
        lacks_room = case.works and not pod.scheduled
        if not gated and not lacks_room and case.seconds_unready(pod) >= deadline:
            return PROGRESS_DEADLINE_EXCEEDED, f"pod {pod.name} is not ready after {deadline} s"
    return None


def _is_not_made(case: _Case) -> _Verdict | None:
    """No pod to look at: a quota or an admission rule."""
    found = deployment(case.snapshot)
    status, metadata = found.get("status", {}), found.get("metadata", {})
    seen = status.get("observedGeneration") == metadata.get("generation")
    if case.pods or not seen or deployed(case.snapshot) != case.known.target:
        return None
    said = {c["type"]: c for c in status.get("conditions", ())}
    # The deadline alone may have passed for the template before: its controller corrects that a moment later.
    refused = said.get("ReplicaFailure", {})
    late = said.get("Progressing", {}).get("reason") == PROGRESS_DEADLINE_EXCEEDED
    if not late or refused.get("status") != "True":
        return None
    return PROGRESS_DEADLINE_EXCEEDED, refused.get("message") or "no pod of it was made in time"


_RULES: tuple[Callable[[_Case], _Verdict | None], ...] = (
    _fails,
    _disagrees,
    _is_held,
    _has_no_place,
    _stands_still,
    _is_late,
    _is_not_made,
)


# --- surge ---


def _finds_no_room(case: _Case) -> bool:
    """Whether the extra pod of a surge waits in vain: for a node, or to be made at all."""
    if not surge(case.snapshot, case.spec, case.known) or not rolling(case.snapshot):
        return False
    waiting = [
        pod
        for pod in case.unready
        if not pod.scheduled and pod.changed_at is not None and case.now - pod.changed_at >= SURGE_SECONDS
    ]
    if waiting:
        return not waiting_for_drain(case.snapshot)
    return _none_can_be_made(case)


def _none_can_be_made(case: _Case) -> bool:
    """Whether the API server refuses pods of this revision, as a quota does."""
    found = deployment(case.snapshot)
    said = {c["type"]: c["status"] for c in found.get("status", {}).get("conditions", ())}
    return said.get("ReplicaFailure") == "True" and deployed(case.snapshot) == case.known.running
