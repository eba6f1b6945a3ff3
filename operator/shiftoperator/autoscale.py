"""Carries out what the autoscaler decides: through /scale, and at a scale-in pod by pod."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from shiftcore import scaling
from shiftprotos import contract

from shiftoperator import apply, plan, retire, rollout, status
from shiftoperator.cluster import Cluster
from shiftoperator.errors import ConflictError, RuntimeCallError, UserError
from shiftoperator.metrics import Metrics
from shiftoperator.runtime_client import RuntimeClient, endpoints
from shiftoperator.settings import Settings
from shiftoperator.snapshot import Object, Pod, RuntimeState, Snapshot
from shiftoperator.spec import Spec

log = logging.getLogger(__name__)


@dataclass
class Memory:
    """What is kept of one object between two passes. All of it can be lost: windows begin anew."""

    windows: scaling.Memory = field(default_factory=scaling.Memory)
    # A decision whose write was sent and not yet answered, and one that the status may not have yet.
    asked: Object | None = None
    told: Object | None = None
    samples: dict[str, deque[plan.TokenSample]] = field(default_factory=dict)

    def with_told(self, decisions: list[Object]) -> list[Object]:
        """With the newest, which a status that was not written lacks."""
        if self.told is not None and _what(self.told) in map(_what, decisions):
            self.told = None
        return decisions if self.told is None else [self.told, *decisions]

    def forget_windows(self) -> None:
        self.windows = scaling.Memory()

    def remember(self, uid: str, state: RuntimeState) -> None:
        samples = self.samples.setdefault(uid, deque())
        samples.append(plan.sample(state))
        while len(samples) > 2 and state.read_at - samples[1].at >= plan.SHARE_SECONDS:
            samples.popleft()

    def keep(self, uids: set[str]) -> None:
        self.samples = {uid: samples for uid, samples in self.samples.items() if uid in uids}

    def oldest(self) -> dict[str, plan.TokenSample]:
        return {uid: samples[0] for uid, samples in self.samples.items() if samples}


@dataclass(frozen=True)
class Result:
    """The snapshot with what was marked, what to say of it, and `status.decisions`."""

    snapshot: Snapshot
    said: status.Scaling
    decisions: list[Object]


class Autoscaler:
    """`clock` is that of the pods' states, `wall` tells the seconds since 1970."""

    def __init__(
        self,
        cluster: Cluster,
        runtimes: RuntimeClient,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._cluster, self._runtimes, self._settings, self._metrics = cluster, runtimes, settings, metrics
        self._clock, self._wall = clock, wall

    async def run(self, memory: Memory, snapshot: Snapshot, spec: Spec, decisions: list[Object]) -> Result:
        decisions = memory.with_told(decisions)
        asked, memory.asked = memory.asked, None
        if asked is not None and retire.replicas_of(snapshot) == asked["to"] and retire.sized_by_us(snapshot):
            # It arrived, and only its answer did not.
            decisions = await self._tell(memory, snapshot, decisions, asked)
        try:
            # Of a suspended service every pod leaves, marked or not.
            if retire.marked(snapshot) and not spec.suspend:
                return await self._retire(memory, snapshot, spec, decisions)
            out = _keeps_out(snapshot, spec)
            if out is not None:
                memory.forget_windows()
                return Result(snapshot, out, decisions)
            return await self._decide(memory, snapshot, spec, decisions)
        except UserError as refused:
            return Result(snapshot, status.Scaling(False, refused.reason, refused.message), decisions)

    async def _decide(self, memory: Memory, snapshot: Snapshot, spec: Spec, decisions: list[Object]) -> Result:
        seen = plan.observation(snapshot, spec, memory.oldest(), self._wall())
        decision, after = scaling.decide(_limits(snapshot, spec), seen, self._clock(), memory.windows)
        active = decision.reason not in (scaling.Reason.METRICS_STALE, scaling.Reason.METRICS_LOST)
        result = Result(snapshot, status.Scaling(active, str(decision.reason), decision.message), decisions)
        if decision.action is not scaling.Action.HOLD:
            result = await self._carry_out(memory, result, spec, seen, decision)
        # Only now: a decision that was not carried out must not wait for its window again.
        memory.windows = after
        return result

    async def _carry_out(
        self, memory: Memory, result: Result, spec: Spec, seen: scaling.Observation, decision: scaling.Decision
    ) -> Result:
        if spec.autoscaling.mode is not scaling.Mode.APPLY:
            return await self._recommend(memory, result, decision)
        target = decision.replicas
        if decision.action is scaling.Action.IN:
            if not seen.missing:
                return await self._mark(result, seen, decision)
            # Pods that do not serve leave first by themselves: who of the others follows is chosen when they are gone.
            target = max(target, seen.replicas - seen.missing)
        entry = memory.asked = _entry(seen.replicas, target, str(decision.reason), decision.message, applied=True)
        try:
            await apply.scale(self._cluster, result.snapshot.resource, target)
        except ConflictError:
            memory.asked = None
            raise
        memory.asked = None
        return await self._told(memory, result, entry)

    async def _recommend(self, memory: Memory, result: Result, decision: scaling.Decision) -> Result:
        replicas = retire.replicas_of(result.snapshot)
        entry = _entry(replicas, decision.replicas, str(decision.reason), decision.message, applied=False)
        last = result.decisions[0] if result.decisions else {}
        if all(last.get(key) == entry[key] for key in ("to", "reason", "applied")):
            return result
        return await self._told(memory, result, entry)

    # --- scale-in, pod by pod ---

    async def _mark(self, result: Result, seen: scaling.Observation, decision: scaling.Decision) -> Result:
        snapshot = result.snapshot
        chosen = scaling.least_loaded(seen.pods, seen.replicas - decision.replicas)
        mark = retire.Mark(seen.replicas, self._wall(), str(decision.reason), decision.message)
        for pod in [pod for pod in snapshot.ready_pods if pod.name in chosen]:
            await apply.annotate_pod(self._cluster, snapshot.key.namespace, pod, mark.annotations())
            snapshot = _changed(snapshot, pod, retiring=mark.annotations()[contract.ANNOTATION_RETIRING])
        note = f"pods {', '.join(chosen)} are emptied and leave, {seen.replicas} to {decision.replicas}: {mark.message}"
        log.info("scale-in begins key=%s reason=%s %s", snapshot.key, decision.reason, note)
        await self._event(snapshot, mark.reason, note, str(decision.action))
        return Result(snapshot, status.Scaling(True, status.reasons.DRAINING, note), result.decisions)

    async def _retire(self, memory: Memory, snapshot: Snapshot, spec: Spec, decisions: list[Object]) -> Result:
        cancelled = _keeps_pods(snapshot, spec) or self._needs_pods(memory, snapshot, spec)
        step = retire.step(snapshot, cancelled, spec.autoscaling.drain_seconds, self._wall())
        result = Result(snapshot, status.Scaling(True, step.reason, step.message), decisions)
        lowered = retire.lowered(snapshot)
        if lowered is not None and not _is_told(decisions, lowered):
            # It was asked for, and whoever did it got no answer or ended before it was told.
            result = await self._tell_lowered(memory, result, lowered, retire.replicas_of(snapshot))
        await self._drain(snapshot, step.drain)
        if step.lower_to is not None:
            result = await self._lower(memory, result, step.lower_to)
        for pod in step.delete:
            await apply.delete_pod(self._cluster, snapshot.key.namespace, pod)
            result = replace(result, snapshot=_changed(result.snapshot, pod, deleting=True))
        for pod in step.unmark:
            await apply.annotate_pod(self._cluster, snapshot.key.namespace, pod, retire.NO_MARK)
            result = replace(result, snapshot=_changed(result.snapshot, pod, retiring=""))
        if step.delete or step.unmark:
            note = f"{step.message}; replaced: {_names(step.delete)}; kept: {_names(step.unmark)}"
            log.warning("scale-in undone key=%s reason=%s %s", snapshot.key, step.reason, note)
            await self._event(snapshot, step.reason, note, "ScaleIn", warning=True)
        if not retire.marked(result.snapshot):
            # What the survivors alone have shown says nothing of them and the others together.
            memory.forget_windows()
        return result

    def _needs_pods(self, memory: Memory, snapshot: Snapshot, spec: Spec) -> str | None:
        """Whether those that stay ask for more pods already."""
        leaving = retire.marked(snapshot)
        if retire.remaining_replicas(snapshot) != spec.replicas - len(leaving):
            return None
        seen = plan.observation(snapshot, spec, memory.oldest(), self._wall(), leaving)
        limits, now = _limits(snapshot, spec), self._clock()
        decision, memory.windows = scaling.decide_while_leaving(limits, seen, now, memory.windows)
        return decision.message if decision.action is scaling.Action.OUT else None

    async def _drain(self, snapshot: Snapshot, pods: tuple[Pod, ...]) -> None:
        access = plan.access(snapshot)
        if access is None or not pods:
            return
        answers = await self._runtimes.drain(endpoints(pods), access)
        for uid, error in answers.items():
            if isinstance(error, RuntimeCallError):
                log.info("not drained, asked again key=%s pod=%s: %s", snapshot.key, uid, error)

    async def _lower(self, memory: Memory, result: Result, replicas: int) -> Result:
        snapshot = result.snapshot
        mark = retire.mark_of(retire.marked(snapshot)[0])
        await apply.scale(self._cluster, snapshot.resource, replicas)
        return await self._tell_lowered(memory, result, mark, replicas)

    async def _tell_lowered(self, memory: Memory, result: Result, mark: retire.Mark, replicas: int) -> Result:
        entry = _entry(mark.source, replicas, mark.reason, mark.message, applied=True)
        return await self._told(memory, result, entry)

    # --- what is told ---

    async def _told(self, memory: Memory, result: Result, entry: Object) -> Result:
        return replace(result, decisions=await self._tell(memory, result.snapshot, result.decisions, entry))

    async def _tell(self, memory: Memory, snapshot: Snapshot, decisions: list[Object], entry: Object) -> list[Object]:
        memory.told = entry
        verb = "scaled" if entry["applied"] else "would scale"
        note = f"{verb} from {entry['from']} to {entry['to']} pods: {entry['message']}"
        key, reason = snapshot.key, entry["reason"]
        action = str(scaling.Action.OUT if entry["to"] > entry["from"] else scaling.Action.IN)
        log.info("scale key=%s applied=%s reason=%s %s", key, entry["applied"], reason, note)
        self._metrics.scale_decisions.labels(action, reason).inc()
        await self._event(snapshot, reason, note, action)
        return [entry, *decisions]

    async def _event(self, snapshot: Snapshot, reason: str, note: str, action: str, warning: bool = False) -> None:
        identity = self._settings.identity
        await apply.event(self._cluster, snapshot.resource, reason, note, identity, action, warning)


def _limits(snapshot: Snapshot, spec: Spec) -> scaling.Limits:
    """With the GPUs that pods hold, which are not those of the spec while it was not followed or is still to be."""
    known = rollout.revisions(snapshot)
    return replace(
        spec.autoscaling.limits,
        gpus_per_pod=rollout.gpus_per_pod(snapshot, spec, known),
        largest_pod_gpus=rollout.largest_pod_gpus(snapshot, spec, known),
    )


def _keeps_out(snapshot: Snapshot, spec: Spec) -> status.Scaling | None:
    """Why the autoscaler keeps out."""
    if spec.suspend:
        return status.Scaling(False, status.reasons.SUSPENDED, "spec.suspend is set; replicas stay as they are")
    if spec.autoscaling.mode is scaling.Mode.DISABLED:
        return status.Scaling(False, status.reasons.DISABLED, "spec.autoscaling.mode is Disabled")
    if snapshot.scaler_unread is not None:
        unread = snapshot.scaler_unread
        message = f"replicas stay as they are, because somebody else may drive /scale and this cannot be seen: {unread}"
        return status.Scaling(False, unread.reason, message)
    if snapshot.external_scaler is not None:
        message = f"HorizontalPodAutoscaler {snapshot.external_scaler} drives /scale; delete it or disable autoscaling"
        return status.Scaling(False, status.reasons.EXTERNAL_SCALER, message)
    if spec.replicas == 0:
        message = "0 replicas were asked for; scale to 1 to let the autoscaler act"
        return status.Scaling(False, status.reasons.SCALED_TO_ZERO, message)
    return None


def _keeps_pods(snapshot: Snapshot, spec: Spec) -> str | None:
    """Why pods that were marked should not leave after all."""
    out = _keeps_out(snapshot, spec)
    if out is not None:
        return out.message
    if spec.autoscaling.mode is not scaling.Mode.APPLY:
        return "spec.autoscaling.mode does not let the operator scale any more"
    if rollout.rolling(snapshot):
        return "a rollout began, which replaces pods itself"
    return None


def _changed(snapshot: Snapshot, pod: Pod, **fields: Any) -> Snapshot:
    """As the next observation will show it: a pass before that must not do it again."""
    pods = tuple(replace(other, **fields) if other.uid == pod.uid else other for other in snapshot.pods)
    return replace(snapshot, pods=pods)


def _entry(source: int, target: int, reason: str, message: str, applied: bool) -> Object:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"time": now, "from": source, "to": target, "reason": reason, "message": message, "applied": applied}


def _what(entry: Object) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in ("time", "from", "to", "reason", "applied"))


def _is_told(decisions: list[Object], mark: retire.Mark) -> bool:
    return any(
        (told["from"], told["reason"]) == (mark.source, mark.reason)
        and datetime.fromisoformat(told["time"]).timestamp() >= mark.since
        for told in decisions
    )


def _names(pods: tuple[Pod, ...]) -> str:
    return ", ".join(pod.name for pod in pods) or "none"
