"""Carries out what is decided about revisions: checks a new one before a pod is touched, and stores the decision."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shiftoperator import apply, manifests, observe, plan, rollout
from shiftoperator.cluster import Cluster
from shiftoperator.errors import REFUSED_BY_API, InvalidPodTemplateError, UserError
from shiftoperator.rollout import Revisions
from shiftoperator.settings import Settings
from shiftoperator.snapshot import Object, Snapshot
from shiftoperator.spec import Spec
from shiftoperator.status import Rejected

log = logging.getLogger(__name__)

# A revision that was refused before a pod was touched is looked at again: what it lacked may be there by now.
RECHECK_SECONDS = 30.0


@dataclass
class Memory:
    """What is kept of one object between two passes. It can be lost: the check is made again."""

    refused: str = ""
    refused_at: float = 0.0
    # The template last tried on the API server, when, and what that said against it.
    tried: str = ""
    tried_at: float = 0.0
    verdict: UserError | None = None
    seen: rollout.Seen = field(default_factory=rollout.Seen)


@dataclass(frozen=True)
class Result:
    """The snapshot with what was stored, and the ControllerRevision whose pods should run."""

    snapshot: Snapshot
    decided: Revisions
    revision: Object


class Reviser:
    """`clock` is monotonic, `wall` tells the seconds since 1970, `now_text` the time as a status has it."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        clock: Callable[[], float],
        wall: Callable[[], float],
        now_text: Callable[[], str],
    ) -> None:
        self._cluster, self._settings = cluster, settings
        self._clock, self._wall, self._now_text = clock, wall, now_text

    async def run(self, memory: Memory, snapshot: Snapshot, spec: Spec) -> Result:
        """Raises UserError when the template cannot work and no other one ever did."""
        now = self._wall()
        memory.seen = rollout.seen(snapshot, memory.seen, now)
        decided = rollout.judge(snapshot, spec, now, self._now_text(), memory.seen)
        # One of somebody else would be refused for what it is, not for our pods; the pass says whose it is.
        foreign = plan.foreign(snapshot, "Deployment", snapshot.key.name)
        if rollout.begins(snapshot, decided) and not foreign:
            decided = await self._checked(memory, snapshot, spec, decided)
        before, snapshot = snapshot, await self._store(snapshot, decided)
        await self._tell(before, decided)
        revision = rollout.stored(snapshot, decided.running)
        if decided.rejected is None or revision is None:
            revision = plan.revision(snapshot, spec, self._settings.runtime_image)
        return Result(snapshot, decided, revision)

    async def _checked(self, memory: Memory, snapshot: Snapshot, spec: Spec, decided: Revisions) -> Revisions:
        fresh = self._clock() - memory.refused_at < RECHECK_SECONDS
        if decided.rejected is not None and memory.refused == decided.target and fresh:
            return decided
        fallback = rollout.can_go_back(snapshot, decided)
        try:
            revision = plan.revision(snapshot, spec, self._settings.runtime_image)
            await self._try(memory, decided.target, manifests.deployment(snapshot.resource, spec, _template(revision)))
            await observe.serving_certificate(self._cluster, snapshot.key, spec)
            if fallback:
                # Without anything to go back to pods may as well wait for it themselves: the kubelet says the same.
                await observe.needs(self._cluster, snapshot.key, spec, _template(revision))
        except UserError as refused:
            if not fallback:
                raise
            memory.refused, memory.refused_at = decided.target, self._clock()
            return replace(decided, rejected=self._refusal(decided, refused), no_surge="")
        return replace(decided, rejected=None)

    async def _try(self, memory: Memory, target: str, deployment: Object) -> None:
        """Once: what holds the Deployment up afterwards, a name that is taken say, is no reason to try again."""
        known = memory.tried == target
        if known and memory.verdict is None:
            return
        if known and memory.verdict is not None and self._clock() - memory.tried_at < RECHECK_SECONDS:
            raise memory.verdict
        memory.tried, memory.tried_at, memory.verdict = "", self._clock(), None
        try:
            await self._dry_run(deployment)
        except UserError as refused:
            memory.tried, memory.verdict = target, refused
            raise
        memory.tried = target

    async def _dry_run(self, deployment: Object) -> None:
        try:
            await apply.dry_run(self._cluster, deployment)
        except UserError as refused:
            if refused.reason != REFUSED_BY_API:
                raise
            raise InvalidPodTemplateError(plan.in_words_of_the_spec(refused.message)) from refused

    def _refusal(self, decided: Revisions, refused: UserError) -> Rejected:
        known = decided.rejected
        same = known is not None and (known.reason, known.message) == (refused.reason, refused.message)
        time = known.time if known is not None and same else self._now_text()
        return Rejected(decided.target, refused.reason, refused.message, time, decided.good, tried=False)

    async def _store(self, snapshot: Snapshot, decided: Revisions) -> Snapshot:
        """Before the Deployment follows: whoever comes next decides the same."""
        before, after = snapshot.status.get("rollout") or {}, decided.as_status()
        if before == after:
            return snapshot
        # A merge patch keeps what it does not name.
        changed = {**after, **{name: None for name in before if name not in after}}
        return snapshot.answered(await apply.status(self._cluster, snapshot.resource, {"rollout": changed}))

    async def _tell(self, snapshot: Snapshot, decided: Revisions) -> None:
        """A rollback is told by the conditions."""
        if not decided.no_surge or decided.no_surge == (snapshot.status.get("rollout") or {}).get("noSurgeRevision"):
            return
        note = f"the extra pod of revision {decided.no_surge} found no node in time; this rollout goes on without surge"
        log.info("no surge key=%s %s", snapshot.key, note)
        await apply.event(
            self._cluster, snapshot.resource, "SurgeGivenUp", note, self._settings.identity, "Rollout", warning=True
        )


def _template(revision: Object) -> Object:
    found: Object = revision["data"]["template"]
    return found
