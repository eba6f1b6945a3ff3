"""How pods are replaced while a rollout is under way: with how many more, and what the old ones may take to leave."""

from __future__ import annotations

from collections.abc import Callable

from shiftoperator import manifests
from shiftoperator.rollout.known import Revisions, deployment, present, revisions
from shiftoperator.snapshot import Object, Snapshot
from shiftoperator.spec import Spec, Strategy


def surge(snapshot: Snapshot, spec: Spec, decided: Revisions) -> int:
    """Pods that a rollout may have beside those asked for."""
    budget = spec.autoscaling.limits.max_gpus
    paid = budget is None or (spec.pods + 1) * largest_pod_gpus(snapshot, spec, decided) <= budget
    wanted = spec.rollout.strategy is Strategy.SURGE and decided.no_surge != decided.running
    return 1 if wanted and paid else 0


def gpus_per_pod(snapshot: Snapshot, spec: Spec, decided: Revisions) -> int:
    """Of the revision that should run: after a rollback more or fewer than the spec says."""
    template = present(snapshot, decided).get(decided.running)
    return (manifests.gpus_of(template) if template is not None else None) or spec.gpus


def largest_pod_gpus(snapshot: Snapshot, spec: Spec, decided: Revisions) -> int:
    """Of all pods that are there, leave or may come back."""
    return _most(snapshot, decided, manifests.gpus_of, spec.gpus) or spec.gpus


def leaving_seconds(snapshot: Snapshot, spec: Spec, decided: Revisions) -> int:
    """What a pod that leaves may take, as its own template says: the spec may ask for less by now."""
    asked = spec.rollout.drain_seconds + manifests.DRAIN_MARGIN_SECONDS
    return _most(snapshot, decided, manifests.leaving_seconds_of, asked)


def _most(snapshot: Snapshot, decided: Revisions, read: Callable[[Object], int | None], asked: int) -> int:
    """Over the templates that count now; `asked` is that of the spec, for one that is not stored yet."""
    said = {hash_: read(template) for hash_, template in present(snapshot, decided).items()}
    return max(asked if said.get(decided.running) is None else 0, *(value or 0 for value in said.values()), 0)


def paused(snapshot: Snapshot, spec: Spec) -> bool:
    """Whether the Deployment is to be paused. Its controller makes no first pod of one that is: before there are pods,
    or its ReplicaSet at least, there is nothing to hold where it is."""
    if not spec.rollout.paused or snapshot.pods:
        return spec.rollout.paused
    found = deployment(snapshot)
    generation = found.get("metadata", {}).get("generation")
    seen = generation is not None and found.get("status", {}).get("observedGeneration") == generation
    is_paused = bool(found.get("spec", {}).get("paused", False))
    return bool(revisions(snapshot).good) and (is_paused or seen)
