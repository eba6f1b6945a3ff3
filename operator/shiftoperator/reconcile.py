"""One pass over one ShiftDeployment: observe, decide, plan, apply.

A new policy does not wait for that: it is stored and pushed as soon as the change is seen, with the pods known from
the pass before.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
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
from shiftoperator.errors import RuntimeCallError, UserError
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key
from shiftoperator.runtime_client import RuntimeClient, endpoints
from shiftoperator.settings import Settings
from shiftoperator.snapshot import Object, Pod, RuntimeState, Snapshot
from shiftoperator.spec import Policy, Spec

log = logging.getLogger(__name__)

# A pod that is busy may miss a reading; what it said last is shown for so long.
KEEP_STATE_SECONDS = 20.0


@dataclass
class Memory:
    """What is kept of one object between two passes. All of it can be lost: it is gathered again."""

    snapshot: Snapshot | None = None
    scaling: autoscale.Memory = field(default_factory=autoscale.Memory)
    adapting: adapt.Memory = field(default_factory=adapt.Memory)
    revising: revise.Memory = field(default_factory=revise.Memory)
    # How far the steps that fetch were, by uid of their pods.
    fetches: dict[str, plan.Moved] = field(default_factory=dict)
    # Since when pods that serve are hardly used; None while they are not.
    calm_since: float | None = None
    # Why the last full pass could not do what the resource asks for; a pass that is not full does not try again.
    refused: UserError | None = None

    @property
    def known(self) -> Snapshot:
        assert self.snapshot is not None, "a pass observes before it decides"
        return self.snapshot


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
        self._memories: dict[Key, Memory] = {}

    async def push(self, key: Key, hint: Object) -> None:
        """The fast path: from the watch event straight to the pods. `hint` is the object as the event showed it. Not
        while a pass over the same object runs, and before one that is full, which says what was wrong."""
        memory = self._memories.get(key)
        if memory is not None and memory.snapshot is not None:
            await self._push_at_once(memory, hint)

    async def reconcile(self, key: Key, full: bool) -> bool:
        """False when the object is gone; a pass that is not full reads only the pods' states."""
        memory = self._memories.setdefault(key, Memory())
        full = full or memory.snapshot is None or memory.snapshot.outdated
        if full:
            seen = await observe.snapshot(self._cluster, key)
            if seen is None:
                await self._forget(key)
                return False
            known = memory.snapshot
            memory.snapshot = replace(seen, states=known.states if known is not None else {})
            self._follow_fetches(memory)
        await self._settle(memory, full)
        return True

    async def forget_all(self) -> None:
        """What was seen counts for nothing once somebody else may act. Call it only when no pass runs."""
        for key in self._memories:
            self._metrics.deployments.forget(key)
        self._memories.clear()
        await self._runtimes.close()

    async def _forget(self, key: Key) -> None:
        memory = self._memories.pop(key)
        self._metrics.deployments.forget(key)
        if memory.snapshot is not None:
            await self._runtimes.forget({pod.uid for pod in memory.snapshot.pods})

    async def _settle(self, memory: Memory, full: bool) -> None:
        before = memory.known.status
        decisions: list[Object] = before.get("decisions", [])
        decision = status.Scaling(False, status.reasons.NOT_DECIDED, "what the resource asks for was refused")
        adapted = adapt.Result(before.get("adaptive"))
        held = await self._accept(memory, full)
        # Pods that run go on, whatever was refused: their policy and their states are looked after.
        if held is not None:
            await self._sync_policy(memory, held)
        else:
            await self._read_states(memory)
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

    async def _accept(self, memory: Memory, full: bool) -> plan.InForce | None:
        """The spec as it holds now, None when it cannot be read; a full pass applies the children too."""
        held = None
        try:
            held = plan.in_force(specs.parse(memory.known.resource["spec"]), self._wall())
            if full:
                await self._apply_children(memory, held.spec)
                memory.refused = None
        except UserError as refused:
            memory.refused = refused
            log.warning("refused key=%s reason=%s: %s", memory.known.key, refused.reason, refused)
        return held

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
            rollout.surge(spec, decided.decided),
            rollout.paused(snapshot, spec),
        )
        await apply.children(self._cluster, plan.changes(snapshot, desired))

    # --- policy ---

    async def _push_at_once(self, memory: Memory, hint: Object) -> None:
        snapshot = memory.known
        same = hint["metadata"]["uid"] == snapshot.resource["metadata"]["uid"]
        if not same or hint["metadata"]["generation"] <= snapshot.generation:
            return
        try:
            held = plan.in_force(specs.parse(hint.get("spec", {})), self._wall())
        except UserError:
            return  # the full pass that follows says why
        decided = plan.policy(snapshot.status, self._wanted_policy(memory, held.spec))
        if decided.store:
            await self._set_policy(memory, decided, held)

    async def _sync_policy(self, memory: Memory, held: plan.InForce) -> None:
        spec = held.spec
        # What the user or the clock changed does not wait for the pods' states.
        decided = plan.policy(memory.known.status, self._wanted_policy(memory, spec))
        if decided.store:
            await self._set_policy(memory, decided, held)
        await self._read_states(memory)
        snapshot, before = memory.known, decided
        if not plan.is_calm(snapshot, spec):
            memory.calm_since = None
        elif memory.calm_since is None:
            memory.calm_since = self._clock()
        decided = plan.policy(snapshot.status, self._wanted_policy(memory, spec), snapshot.states.values())
        if decided.store:
            if decided.policy == before.policy:
                log.warning("pods know a higher policy generation, raising ours key=%s", snapshot.key)
            await self._set_policy(memory, decided, held)
            return
        late = set(plan.behind(snapshot, decided.generation))
        if late:
            await self._push(memory, decided, [pod for pod in snapshot.pods if pod.uid in late])

    def _wanted_policy(self, memory: Memory, spec: Spec) -> Policy:
        calm_seconds = 0.0 if memory.calm_since is None else self._clock() - memory.calm_since
        return plan.wanted_policy(memory.known, spec, calm_seconds)

    async def _set_policy(self, memory: Memory, decided: plan.PolicyPlan, held: plan.InForce) -> None:
        """Stored first: a generation that a pod has seen must never be given out again."""
        started = self._clock()
        snapshot = memory.known
        changed = status.raised_generation(snapshot.status, decided.policy, decided.generation, _now())
        memory.snapshot = snapshot.answered(await apply.status(self._cluster, snapshot.resource, changed))
        accepted = await self._push(memory, decided, snapshot.live_pods)
        seconds = self._clock() - started
        self._metrics.policy_push_seconds.observe(seconds)
        if accepted:
            by = f"accepted by {accepted} of {len(snapshot.live_pods)} pods"
            asked = held.spec.policy.mode
            until = "" if decided.policy.mode == asked else f", while pods are away and others busy; then {asked} again"
            scheduled = f", as {held.words}" if held.words else ""
            note = f"{decided.policy.mode}{until}{scheduled}, generation {decided.generation}: {by}"
            log.info("policy accepted key=%s %s seconds=%.3f", snapshot.key, note, seconds)
            await self._event(memory, "PolicyAccepted", note, "PushPolicy")

    async def _push(self, memory: Memory, decided: plan.PolicyPlan, pods: Iterable[Pod]) -> int:
        """Returns how many pods accepted."""
        snapshot, access = memory.known, plan.access(memory.known)
        if access is None:
            return 0
        answers = await self._runtimes.push(endpoints(pods), access, decided.policy, decided.generation)
        states = dict(snapshot.states)
        accepted = 0
        for uid, answer in answers.items():
            if isinstance(answer, RuntimeCallError):
                log.info("policy not accepted key=%s pod=%s: %s", snapshot.key, uid, answer)
                continue
            accepted += 1
            if uid in states:
                generations = (answer.generation_accepted, answer.generation_applied)
                states[uid] = replace(
                    states[uid],
                    policy=decided.policy,
                    generation_accepted=generations[0],
                    generation_applied=generations[1],
                )
        memory.snapshot = replace(snapshot, states=states)
        return accepted

    async def _read_states(self, memory: Memory) -> None:
        snapshot, access = memory.known, plan.access(memory.known)
        if access is None:
            return
        answers = await self._runtimes.states(endpoints(snapshot.live_pods), access)
        live = {pod.uid for pod in snapshot.live_pods}
        oldest = self._clock() - KEEP_STATE_SECONDS
        states = {u: s for u, s in snapshot.states.items() if u in live and s.read_at > oldest}
        for uid, answer in answers.items():
            if isinstance(answer, RuntimeState):
                states[uid] = answer
                memory.scaling.remember(uid, answer)
            else:
                log.debug("state not read key=%s pod=%s: %s", snapshot.key, uid, answer)
        await self._runtimes.forget({pod.uid for pod in snapshot.pods if pod.uid not in live})
        memory.scaling.keep(live)
        memory.snapshot = replace(snapshot, states=states)
        self._follow_fetches(memory)

    def _follow_fetches(self, memory: Memory) -> None:
        memory.snapshot, memory.fetches = plan.followed(memory.known, memory.fetches, self._wall())

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


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
