"""The only writer: children, status, scale and Events."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from shiftprotos import contract

from shiftoperator.cluster import Cluster
from shiftoperator.errors import ConflictError, TransientError, UserError
from shiftoperator.plan import Changes
from shiftoperator.snapshot import MESSAGE_LIMIT, Object, Pod, identity

log = logging.getLogger(__name__)


async def children(cluster: Cluster, changes: Changes) -> dict[tuple[str, str], Object | None]:
    """What was written, as the API server answered, by (kind, name); None for what was deleted."""
    written: dict[tuple[str, str], Object | None] = {}
    for child in changes.create:
        written[identity(child)] = await cluster.create(child)
        log.info("created kind=%s name=%s", child["kind"], child["metadata"]["name"])
    for child in changes.apply:
        written[identity(child)] = await cluster.apply(child)
        log.info("applied kind=%s name=%s", child["kind"], child["metadata"]["name"])
    for child in changes.delete:
        await cluster.delete(child)
        written[identity(child)] = None
        log.info("deleted kind=%s name=%s", child["kind"], child["metadata"]["name"])
    return written


async def dry_run(cluster: Cluster, child: Object) -> None:
    """Raises UserError when the API server would not take it, unknown fields included. Changes nothing."""
    await cluster.apply(child, dry_run=True)


async def status(cluster: Cluster, resource: Object, changed: Object) -> Object:
    """Writes what changed, if anything; returns the resource as it is now. Raises ConflictError when it is on its way
    out."""
    if not changed:
        return resource
    answer = await cluster.patch_status(resource, changed)
    if answer is None or "deletionTimestamp" in answer["metadata"]:
        raise ConflictError(f"{resource['metadata']['name']} is gone or being deleted", delay_seconds=0.1)
    return answer


async def scale(cluster: Cluster, resource: Object, replicas: int) -> None:
    await cluster.patch_scale(resource, replicas)


async def annotate_pod(cluster: Cluster, namespace: str, pod: Pod, annotations: dict[str, str | None]) -> None:
    await cluster.annotate(_pod_object(namespace, pod), annotations)


async def delete_pod(cluster: Cluster, namespace: str, pod: Pod) -> None:
    """This pod and no later one of its name; its status may have changed meanwhile."""
    await cluster.delete(_pod_object(namespace, pod))


def _pod_object(namespace: str, pod: Pod) -> Object:
    return {"kind": "Pod", "metadata": {"namespace": namespace, "name": pod.name, "uid": pod.uid}}


async def event(
    cluster: Cluster, resource: Object, reason: str, note: str, identity: str, action: str, warning: bool = False
) -> None:
    """Best effort: an Event that cannot be written must not hold up the work it tells of."""
    metadata = resource["metadata"]
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{time.time_ns():x}", "namespace": metadata["namespace"]},
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{contract.API_GROUP}/{contract.MANAGED_BY}",
        "reportingInstance": identity[:128],
        "action": action,
        "reason": reason,
        "note": note[:MESSAGE_LIMIT],
        "type": "Warning" if warning else "Normal",
        "regarding": {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
    }
    try:
        await cluster.create(body)
    except (TransientError, UserError) as error:
        log.warning("event not written reason=%s: %s", reason, error)
