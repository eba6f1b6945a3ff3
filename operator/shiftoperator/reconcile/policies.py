"""The policy of one object's pods: stored first, then pushed to all of them, and compared with what they say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from shiftoperator import apply, plan, status
from shiftoperator import spec as specs
from shiftoperator.cluster import Cluster
from shiftoperator.errors import RuntimeCallError, UserError
from shiftoperator.metrics import Metrics
from shiftoperator.reconcile.memory import Memory
from shiftoperator.runtime_client import RuntimeClient, endpoints
from shiftoperator.settings import Settings
from shiftoperator.snapshot import Object, Pod, RuntimeState
from shiftoperator.spec import Policy, Spec

log = logging.getLogger(__name__)

# A pod that is busy may miss a reading; what it said last is shown for so long.
KEEP_STATE_SECONDS = 20.0


class Policies:
    """`clock` is that of the pods' states, `wall` tells the seconds since 1970, `now_text` the time as in a status."""

    def __init__(
        self,
        cluster: Cluster,
        runtimes: RuntimeClient,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        wall: Callable[[], float],
        now_text: Callable[[], str],
    ) -> None:
        self._cluster, self._runtimes, self._settings, self._metrics = cluster, runtimes, settings, metrics
        self._clock, self._wall, self._now_text = clock, wall, now_text

    async def push_at_once(self, memory: Memory, hint: Object) -> None:
        snapshot = memory.known
        same = hint["metadata"]["uid"] == snapshot.resource["metadata"]["uid"]
        if not same or hint["metadata"]["generation"] <= snapshot.generation:
            return
        try:
            held = plan.in_force(specs.parse(hint.get("spec", {})), self._wall())
        except UserError:
            return  # the full pass that follows says why
        decided = plan.policy(snapshot.status, self._wanted(memory, held.spec))
        if decided.store:
            await self._set(memory, decided, held)

    async def sync(self, memory: Memory, held: plan.InForce) -> None:
        spec = held.spec
        # What the user or the clock changed does not wait for the pods' states.
        decided = plan.policy(memory.known.status, self._wanted(memory, spec))
        if decided.store:
            await self._set(memory, decided, held)
        await self.read_states(memory)
        snapshot, before = memory.known, decided
        if not plan.is_calm(snapshot, spec):
            memory.calm_since = None
        elif memory.calm_since is None:
            memory.calm_since = self._clock()
        decided = plan.policy(snapshot.status, self._wanted(memory, spec), snapshot.states.values())
        if decided.store:
            if decided.policy == before.policy:
                log.warning("pods know a higher policy generation, raising ours key=%s", snapshot.key)
            await self._set(memory, decided, held)
            return
        late = set(plan.behind(snapshot, decided.generation))
        if late:
            await self._push(memory, decided, [pod for pod in snapshot.pods if pod.uid in late])

    def _wanted(self, memory: Memory, spec: Spec) -> Policy:
        calm_seconds = 0.0 if memory.calm_since is None else self._clock() - memory.calm_since
        return plan.wanted_policy(memory.known, spec, calm_seconds)

    async def _set(self, memory: Memory, decided: plan.PolicyPlan, held: plan.InForce) -> None:
        """Stored first: a generation that a pod has seen must never be given out again."""
        started = self._clock()
        snapshot = memory.known
        changed = status.raised_generation(snapshot.status, decided.policy, decided.generation, self._now_text())
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
            identity = self._settings.identity
            await apply.event(self._cluster, memory.known.resource, "PolicyAccepted", note, identity, "PushPolicy")

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

    async def read_states(self, memory: Memory) -> None:
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
        memory.scaling.keep(live)
        memory.snapshot = replace(snapshot, states=states)
        self.follow_fetches(memory)

    def follow_fetches(self, memory: Memory) -> None:
        """By what the pods said last."""
        memory.snapshot, memory.fetches = plan.followed(memory.known, memory.fetches, self._wall())
