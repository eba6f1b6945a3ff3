"""Gathers what is there; every read has a deadline and changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from shiftprotos import contract

from shiftoperator import manifests, names
from shiftoperator.cluster import Cluster
from shiftoperator.errors import CLAIM_MISSING, SECRET_MISSING, UserError
from shiftoperator.snapshot import Object, Pod, Snapshot, pod_from
from shiftoperator.spec import TLS_AUTHORITY, Spec

# A new one is noticed within this time.
SCALERS_SECONDS = 5.0

T = TypeVar("T")


class Scalers:
    """HorizontalPodAutoscalers by namespace: one list for all resources of it, and another when that one is old."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._clock = cluster, clock
        # With the time at which the list was asked for; passes that come meanwhile wait for the same one.
        self._lists: dict[str, tuple[float, asyncio.Task[list[Object]]]] = {}

    async def of(self, key: names.Key) -> str | None:
        """The one (KEDA makes one too) that drives this resource's /scale. Raises what a list does."""
        for scaler in await asyncio.shield(self._listed(key.namespace)):
            target: Object = scaler.get("spec", {}).get("scaleTargetRef", {})
            if target.get("kind") == contract.KIND and target.get("name") == key.name:
                return str(scaler["metadata"]["name"])
        return None

    def forget(self) -> None:
        self._lists.clear()

    def _listed(self, namespace: str) -> asyncio.Task[list[Object]]:
        now = self._clock()
        self._lists = {name: known for name, known in self._lists.items() if now - known[0] < SCALERS_SECONDS}
        if namespace not in self._lists or _failed(self._lists[namespace][1]):
            task = asyncio.create_task(self._cluster.list("HorizontalPodAutoscaler", namespace), name="scalers")
            # Whoever waited for it may be gone.
            task.add_done_callback(_failed)
            self._lists[namespace] = (now, task)
        return self._lists[namespace][1]


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


class _Reads:
    """Takes refusals where there is something to go on with; what passes by itself is raised."""

    def __init__(self) -> None:
        self._refusals: list[UserError] = []

    @property
    def refused(self) -> UserError | None:
        """The same one of several every time: they come in no order, and it is told in the status."""
        return min(self._refusals, key=str, default=None)

    async def of(self, answer: Awaitable[T], otherwise: T) -> T:
        try:
            return await answer
        except UserError as refused:
            self._refusals.append(refused)
            return otherwise


async def snapshot(cluster: Cluster, key: names.Key, scalers: Scalers, known: Snapshot | None) -> Snapshot | None:
    """None when the ShiftDeployment is gone or on its way out. What may not be read is taken as it was `known`, and the
    snapshot says so. Raises UserError when the ShiftDeployment itself may not be read."""
    wanted = manifests.singletons(key.name)
    reads, before = _Reads(), known if known is not None else Snapshot({}, {}, ())
    found, revisions, pods, (scaler, scaler_unread) = await asyncio.gather(
        asyncio.gather(
            *(reads.of(cluster.get(i[0], key.namespace, i[1]), before.children.get(i)) for i in wanted),
        ),
        reads.of(
            cluster.list("ControllerRevision", key.namespace, names.selector_text(key.name)), list(before.revisions())
        ),
        reads.of(_pods(cluster, key), before.pods),
        _scaler(scalers, key),
    )
    # Last: children that the garbage collector took with it must not look like children that are missing.
    resource = await _resource(cluster, key, reads)
    if resource is None:
        return None
    if reads.refused is not None and known is not None and _uid(resource) != _uid(known.resource):
        return await snapshot(cluster, key, scalers, None)
    children = {identity: child for identity, child in zip(wanted, found, strict=True) if child is not None}
    children |= {("ControllerRevision", r["metadata"]["name"]): r for r in revisions}
    return Snapshot(
        resource,
        children,
        pods,
        external_scaler=scaler,
        scaler_unread=scaler_unread,
        unread=reads.refused,
        partial=reads.refused is not None and (known is None or known.partial),
    )


async def changes(cluster: Cluster, known: Snapshot, scalers: Scalers) -> Snapshot | None:
    """As ``snapshot``, but what only we write is taken as it was known: an event tells of no other child.

    Many resources under many changes need a quarter of the reads so.
    """
    key, reads = known.key, _Reads()
    resource, deployment, pods, (scaler, scaler_unread) = await asyncio.gather(
        _resource(cluster, key, reads),
        reads.of(cluster.get("Deployment", key.namespace, key.name), None),
        reads.of(_pods(cluster, key), known.pods),
        _scaler(scalers, key),
    )
    # Where the Deployment is there, none is missing because the garbage collector took it. What this pass changes may
    # still be written just after a deletion, as after any read; the collector takes it like the others.
    same = resource is not None and _uid(resource) == _uid(known.resource)
    if resource is None or deployment is None or not same or reads.refused is not None:
        return await snapshot(cluster, key, scalers, known)
    seen = known.after({("Deployment", key.name): deployment})
    return Snapshot(resource, seen.children, pods, external_scaler=scaler, scaler_unread=scaler_unread)


async def _scaler(scalers: Scalers, key: names.Key) -> tuple[str | None, UserError | None]:
    """Which one there is, and why nobody knows."""
    try:
        return await scalers.of(key), None
    except UserError as refused:
        return None, refused


async def _resource(cluster: Cluster, key: names.Key, reads: _Reads) -> Object | None:
    unread: Object = {}
    resource = await reads.of(cluster.get(contract.KIND, key.namespace, key.name), unread)
    if resource is unread:
        # Whoever may do so watches them, and can say here what is missing.
        listed = await cluster.list(contract.KIND, key.namespace)
        resource = next((other for other in listed if other["metadata"]["name"] == key.name), None)
    if resource is None or "deletionTimestamp" in resource["metadata"]:
        return None
    if not isinstance(resource.get("spec"), dict):
        return {**resource, "spec": {}}  # past another CRD; what is missing is said in Ready
    return resource


def _uid(resource: Object) -> str:
    return str(resource["metadata"]["uid"])


async def _pods(cluster: Cluster, key: names.Key) -> tuple[Pod, ...]:
    return tuple(pod_from(pod) for pod in await cluster.list("Pod", key.namespace, names.selector_text(key.name)))


async def needs(cluster: Cluster, key: names.Key, spec: Spec, template: Object) -> None:
    """Raises UserError for something that pods of this template could not start without, as far as it can be known."""
    for name in manifests.secrets_named(template, key.name):
        if await cluster.metadata("Secret", key.namespace, name) is None:
            raise UserError(SECRET_MISSING, f"Secret {name}, which the pods name, does not exist; create it")
    claim = spec.model.claim
    if claim is not None and await cluster.metadata("PersistentVolumeClaim", key.namespace, claim) is None:
        message = f"PersistentVolumeClaim {claim} of model.uri does not exist; create it or correct the URI"
        raise UserError(contract.REASON_MODEL_NOT_FOUND, message)
    cache = spec.cache.claim if spec.cache is not None else None
    if cache is not None and await cluster.metadata("PersistentVolumeClaim", key.namespace, cache) is None:
        message = f"PersistentVolumeClaim {cache} of cache.claimName does not exist; create it or correct the name"
        raise UserError(CLAIM_MISSING, message)


async def serving_certificate(cluster: Cluster, key: names.Key, spec: Spec) -> None:
    """Raises UserError when the Secret of service.tls is not there, for which the kubelet would wait without a word, or
    lacks a key that pods read."""
    tls = spec.service.tls
    if tls is None:
        return
    metadata = await cluster.metadata("Secret", key.namespace, tls.secret)
    if metadata is None:
        message = f"Secret {tls.secret} of service.tls does not exist; create it with {', '.join(tls.keys)}"
        raise UserError(SECRET_MISSING, message)
    known = _keys(metadata)
    missing = [] if known is None else [name for name in tls.keys if name not in known]
    if missing == [TLS_AUTHORITY]:
        message = (
            f"Secret {tls.secret} of service.tls has no {TLS_AUTHORITY}, which clientAuth Required needs; add the "
            f"certificate of the authority that signs those of clients as {TLS_AUTHORITY}, or set clientAuth to None"
        )
        raise UserError(SECRET_MISSING, message)
    if missing:
        lacks = " and no ".join(missing)
        raise UserError(SECRET_MISSING, f"Secret {tls.secret} of service.tls has no {lacks}; add what is missing")


def _keys(metadata: Object) -> set[str] | None:
    """Of a Secret whose values we do not ask for: the API server notes who wrote which. None where it noted nothing."""
    fields = [entry.get("fieldsV1") or {} for entry in metadata.get("managedFields") or ()]
    written = [part[field] for part in fields for field in ("f:data", "f:stringData") if field in part]
    return {name.removeprefix("f:") for part in written for name in part} if written else None
