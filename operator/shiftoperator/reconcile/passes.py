"""One pass over one ShiftDeployment: observe, decide, plan, apply.

A new policy does not wait for that: it is stored and pushed as soon as the change is seen, with the pods known from
the pass before.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from shiftoperator import (
    adapt,
    apply,
    autoscale,
    certificates,
    manifests,
    observe,
    plan,
    retire,
    revise,
    rollout,
    status,
)
from shiftoperator import spec as specs
from shiftoperator.cluster import Cluster
from shiftoperator.errors import ConflictError, TransientError, UserError
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key
from shiftoperator.reconcile.memory import Failing, Memory
from shiftoperator.reconcile.policies import Policies
from shiftoperator.runtime_client import RuntimeClient
from shiftoperator.settings import Settings
from shiftoperator.snapshot import Object, Snapshot
from shiftoperator.spec import Spec

log = logging.getLogger(__name__)


class Reconciler:
    def __init__(
        self,
        cluster: Cluster,
        runtimes: RuntimeClient,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cluster, self._runtimes, self._settings, self._metrics = cluster, runtimes, settings, metrics
        self._clock, self._wall = clock, wall
        self._autoscaler = autoscale.Autoscaler(cluster, runtimes, settings, metrics, clock, wall)
        self._reviser = revise.Reviser(cluster, settings, clock, wall, _now)
        self._policies = Policies(cluster, runtimes, settings, metrics, clock, wall, _now)
        self._scalers = observe.Scalers(cluster, clock)
        self._memories: dict[Key, Memory] = {}

    async def push(self, key: Key, hint: Object) -> None:
        """The fast path: from the watch event straight to the pods. `hint` is the object as the event showed it. Not
        while a pass over the same object runs, and before one that is full, which says what was wrong."""
        memory = self._memories.get(key)
        if memory is not None and memory.snapshot is not None:
            await self._policies.push_at_once(memory, hint)

    async def reconcile(self, key: Key, full: bool, whole: bool = True) -> plan.Found:
        """A pass that is not full reads only the pods' states. One that is not whole takes the children that only we
        write as the pass before left them, if that came to its end."""
        memory = self._memories.setdefault(key, Memory())
        full = full or memory.snapshot is None or memory.snapshot.outdated
        if full:
            known, written = memory.snapshot, memory.written
            # Until this pass has come to its end: a write without an answer may have been done or not.
            memory.written = None
            if known is None or written is None or whole:
                seen = await observe.snapshot(self._cluster, key, self._scalers, known)
            else:
                seen = await observe.changes(self._cluster, known.after(written), self._scalers)
            if seen is None:
                await self._forget(key)
                return plan.Found.GONE
            memory.snapshot = replace(seen, states=known.states if known is not None else {})
            await self._runtimes.forget(_left(known, seen))
            self._policies.follow_fetches(memory)
        await self._settle(memory, full)
        return plan.found(memory.known, refused=memory.refused is not None)

    async def forget_all(self) -> None:
        """What was seen counts for nothing once somebody else may act. Call it only when no pass runs."""
        for key in self._memories:
            self._metrics.deployments.forget(key)
        self._memories.clear()
        self._scalers.forget()
        await self._runtimes.close()

    async def _forget(self, key: Key) -> None:
        memory = self._memories.pop(key)
        self._metrics.deployments.forget(key)
        if memory.snapshot is not None:
            await self._runtimes.forget({pod.uid for pod in memory.snapshot.pods})

    async def _settle(self, memory: Memory, full: bool) -> None:
        before = memory.known.status
        decisions: list[Object] = before.get("decisions", [])
        decision = status.Scaling(False, status.reasons.NOT_DECIDED, "work is held up; condition Ready says why")
        adapted = adapt.Result(before.get("adaptive"))
        held, failed = await self._accept(memory, full)
        # Pods that run go on, whatever was refused: their policy and their states are looked after.
        if held is not None:
            await self._policies.sync(memory, held)
        else:
            await self._policies.read_states(memory)
        if held is not None and memory.refused is None:
            result = await self._autoscaler.run(memory.scaling, memory.known, held.spec, decisions)
            memory.snapshot, decision, decisions = result.snapshot, result.said, result.decisions
            adapted = adapt.run(memory.adapting, memory.known, held.spec, self._clock(), _now())
        else:
            memory.scaling.forget_windows()
            memory.adapting.forget_windows()
        schedule = held.told if held is not None else before.get("schedule")
        await self._report(memory, before, decision, decisions, adapted.told, schedule)
        if adapted.move:
            log.info("threshold key=%s reason=%s %s", memory.known.key, adapted.reason, adapted.move)
            await self._event(memory, adapted.reason, adapted.move, "AdaptThreshold")
        if failed is not None:
            raise failed

    async def _accept(self, memory: Memory, full: bool) -> tuple[plan.InForce | None, TransientError | None]:
        """The spec as it holds now, None when it cannot be read; a full pass applies the children too. And why that did
        not go, once it has not gone for a while: to be raised when everything else is done."""
        held = None
        try:
            held = plan.in_force(specs.parse(memory.known.resource["spec"]), self._wall())
            if full and memory.known.unread is not None:
                raise memory.known.unread
            if full:
                await self._apply_children(memory, held.spec)
                memory.refused = memory.failing = None
        except UserError as refused:
            memory.refused, memory.failing = refused, None
            log.warning("refused key=%s reason=%s: %s", memory.known.key, refused.reason, refused)
        except ConflictError:
            raise
        except TransientError as error:
            memory.failing = Failing.after(memory.failing, error, self._clock())
            if not memory.failing.lasts(self._clock()):
                raise
            memory.refused = memory.failing.told
            return held, error
        return held, None

    # --- children ---

    async def _apply_children(self, memory: Memory, spec: Spec) -> None:
        decided = await self._reviser.run(memory.revising, memory.known, spec)
        memory.snapshot = snapshot = decided.snapshot
        now = datetime.now(UTC)
        control = manifests.Control(
            plan.control_token(snapshot) or secrets.token_urlsafe(32),
            certificates.renewed(
                plan.stored_certificates(snapshot, now), str(snapshot.key), now, plan.rotation_asked(snapshot)
            ),
        )
        settings = self._settings
        desired = manifests.children(
            snapshot.resource,
            spec,
            decided.revision,
            control,
            settings.namespace,
            settings.metrics_namespaces,
            manifests.Rolling(
                rollout.surge(snapshot, spec, decided.decided),
                rollout.paused(snapshot, spec),
                rollout.serving(snapshot, decided.decided, decided.revision["data"]["template"]),
                rollout.leaving_seconds(snapshot, spec, decided.decided),
            ),
        )
        memory.written = await apply.children(self._cluster, plan.changes(snapshot, desired))

    # --- status ---

    async def _report(
        self,
        memory: Memory,
        before: Object,
        decision: status.Scaling,
        decisions: list[Object],
        adapted: Object | None,
        schedule: Object | None,
    ) -> None:
        snapshot = memory.known
        known = rollout.revisions(snapshot)
        outcome = status.Outcome(
            desired_replicas=retire.remaining_replicas(snapshot),
            template_hash=known.running,
            policy_generation=int(snapshot.status.get("policyGeneration", 0)),
            scaling=decision,
            error=memory.refused or rollout.refusal(known),
            rejected=known.rejected,
            rollout=known.as_status(),
            adaptive=adapted,
            schedule=schedule,
            ignored=plan.rotation_ignored(snapshot),
        )
        built = status.build(snapshot, outcome, decisions, _now())
        if snapshot.partial:
            built = status.unseen(snapshot.status, built)
        changed = status.patch(snapshot.status, built)
        memory.snapshot = snapshot.answered(await apply.status(self._cluster, snapshot.resource, changed))
        self._metrics.deployments.show(snapshot.key, status.figures(snapshot, built))
        for transition in status.transitions(before, built):
            note = f"{transition.type}={transition.status}: {transition.message}"
            log.info("condition key=%s reason=%s %s", snapshot.key, transition.reason, note)
            await self._event(memory, transition.reason, note, "Reconcile", transition.bad)

    async def _event(self, memory: Memory, reason: str, note: str, action: str, warning: bool = False) -> None:
        identity = self._settings.identity
        await apply.event(self._cluster, memory.known.resource, reason, note, identity, action, warning)


def _left(known: Snapshot | None, seen: Snapshot) -> set[str]:
    """uids of pods that are gone or go. Most go between two looks, and are never seen on their way out."""
    return {pod.uid for pod in known.pods} - {pod.uid for pod in seen.live_pods} if known is not None else set()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
