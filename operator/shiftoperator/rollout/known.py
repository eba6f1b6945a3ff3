"""What is known of the revisions, as the status and the cluster have it: which should run, which do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from shiftprotos import contract

from shiftoperator import manifests
from shiftoperator.errors import UserError
from shiftoperator.snapshot import Object, Snapshot
from shiftoperator.spec import section
from shiftoperator.status import Rejected


@dataclass(frozen=True)
class Revisions:
    """Hashes; empty where there is none. `good` is the last that served as `judge` asks for, `no_surge` one whose extra
    pod found no node."""

    target: str
    good: str = ""
    rejected: Rejected | None = None
    no_surge: str = ""

    @property
    def running(self) -> str:
        """Of the template that the Deployment should have."""
        return self.target if self.rejected is None else self.good

    def as_status(self) -> Object:
        told: Object = {"goodRevision": self.good, "noSurgeRevision": self.no_surge}
        if self.rejected is not None:
            told["rejected"] = self.rejected.as_status()
        return {name: value for name, value in told.items() if value}


def revisions(snapshot: Snapshot) -> Revisions:
    """As the status has them, for the spec as it is now."""
    target = _target(snapshot)
    told: Object = snapshot.status.get("rollout") or {}
    good = told.get("goodRevision", "")
    rejected = Rejected.from_status(told.get("rejected"), good)
    if rejected is not None and not _counts(snapshot, rejected, target, good):
        rejected = None
    no_surge = told.get("noSurgeRevision", "")
    found = Revisions(target, good, rejected)
    return replace(found, no_surge=no_surge if no_surge == found.running else "")


def _target(snapshot: Snapshot) -> str:
    """Of the template that the spec asks for. Earlier operators counted empty fields too: a hash of theirs that is in
    use stays, or every pod would be replaced by one that is the same, and what was rejected be tried again."""
    hashes = manifests.template_hashes(snapshot.resource["spec"])
    told: Object = snapshot.status.get("rollout") or {}
    in_use = (deployed(snapshot), told.get("goodRevision"), (told.get("rejected") or {}).get("revision"))
    return next((hash_ for hash_ in in_use if hash_ in hashes), hashes[0])


def _counts(snapshot: Snapshot, rejected: Rejected, target: str, good: str) -> bool:
    """A rejection is over when the spec asks for something else, or there is nothing to go back to."""
    wanted = not rejected.tried or bool(section(snapshot.resource["spec"], "rollout").get("autoRollback", True))
    return rejected.revision == target != good and wanted and stored(snapshot, good) is not None


def stored(snapshot: Snapshot, hash_: str) -> Object | None:
    """The ControllerRevision with this template. One that somebody deleted is made anew while the Deployment has the
    template: what runs is the same, with what the API server added."""
    if not hash_:
        return None
    found = next((revision for revision in snapshot.revisions() if _annotated(revision) == hash_), None)
    if found is None and deployed(snapshot) == hash_:
        template = deployment(snapshot)["spec"]["template"]
        return manifests.controller_revision(snapshot.resource, hash_, template, next_number(snapshot))
    return found


def next_number(snapshot: Snapshot) -> int:
    """Of a ControllerRevision that is made now."""
    return max((int(revision.get("revision", 0)) for revision in snapshot.revisions()), default=0) + 1


def deployed(snapshot: Snapshot) -> str:
    """The hash of the template that the Deployment has; empty without a Deployment."""
    return _annotated(deployment(snapshot).get("spec", {}).get("template", {}))


def deployment(snapshot: Snapshot) -> Object:
    """Empty without one."""
    return snapshot.children.get(("Deployment", snapshot.key.name), {})


def _annotated(obj: Object) -> str:
    return str((obj.get("metadata", {}).get("annotations") or {}).get(contract.ANNOTATION_TEMPLATE_HASH, ""))


def rolling(snapshot: Snapshot) -> bool:
    """Whether pods of another template than the one that should run are still to be replaced."""
    running = revisions(snapshot).running
    return any(pod.template_hash != running for pod in snapshot.live_pods)


def present(snapshot: Snapshot, decided: Revisions) -> dict[str, Object]:
    """Stored templates by their hashes: of pods that are there, that leave or that are to come."""
    hashes = {decided.running, decided.good, *(pod.template_hash for pod in snapshot.pods)}
    found = {hash_: stored(snapshot, hash_) for hash_ in sorted(hashes)}
    return {hash_: _template(revision) for hash_, revision in found.items() if revision is not None}


def serving(snapshot: Snapshot, decided: Revisions, running: Object) -> Object:
    """The template of most pods that are ready, or of most that are there while none is. `running` is the one that
    should run: of as many pods its own count more."""
    counts = Counter(pod.template_hash for pod in snapshot.ready_pods or snapshot.live_pods)
    most = max(counts.values(), default=0)
    if counts[decided.running] == most:
        return running
    found = stored(snapshot, min(hash_ for hash_, count in counts.items() if count == most))
    return running if found is None else _template(found)


def _template(revision: Object) -> Object:
    found: Object = revision["data"]["template"]
    return found


def begins(snapshot: Snapshot, decided: Revisions) -> bool:
    """Whether pods would be replaced, or were held back before that: the template has to be checked."""
    if decided.rejected is not None:
        return not decided.rejected.tried
    return deployed(snapshot) != decided.target


def refusal(known: Revisions) -> UserError | None:
    """Of a revision that was refused before a pod was touched."""
    if known.rejected is None or known.rejected.tried:
        return None
    return UserError(known.rejected.reason, known.rejected.message)


def can_go_back(snapshot: Snapshot, known: Revisions) -> bool:
    return known.good != known.target and stored(snapshot, known.good) is not None
