"""An operator with settled ShiftDeployments of every kind: whatever it writes then, it writes for nothing."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path

from helpers.control_plane.kubelet import Behaviour, Kubelet
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import collection, condition, wait_for

SETTLE_SECONDS = 15.0  # bands of load fall and Events end a while after the last change
_SCALING = {"mode": "Apply", "min": 1, "max": 4, "windows": {"scaleInSeconds": 1}}
_RECOMMEND = {"mode": "Recommend", "min": 1, "max": 4, "windows": {"scaleInSeconds": 1}}
_FAILS = Behaviour(exit_code=1, message='{"reason": "ModelNotFound", "message": "no such file"}')
# Reason of Ready by resource.
SETTLED = {
    "serves": "AllPodsReady",
    "scales": "AllPodsReady",
    "recommends": "AllPodsReady",
    "none": "ScaledToZero",
    "suspended": "Suspended",
    "unplaced": "Unschedulable",
    "fails": "ModelNotFound",
    "taken": "NameConflict",
}


def prepare(plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
    """Before the operator starts: a service that is not ours, pods that find no place and pods that fail."""
    kubelet.behave(namespace, "unplaced", Behaviour(place=False))
    kubelet.behave(namespace, "fails", _FAILS)
    service = {"metadata": {"name": "taken"}, "spec": {"ports": [{"port": 80}]}}
    plane.admin.call("POST", f"/api/v1/namespaces/{namespace}/services", service)
    for resource in (
        example("serves", replicas=2),
        example("scales", replicas=1, autoscaling=_SCALING),
        example("recommends", replicas=1, autoscaling=_RECOMMEND),
        example("none", replicas=0),
        example("suspended", suspend=True),
        example("unplaced"),
        example("fails"),
        example("taken"),
    ):
        plane.admin.call("POST", collection(namespace), resource)


def _is(plane: ControlPlane, namespace: str, name: str, reason: str) -> bool:
    return condition(plane, namespace, name)[1] == reason


def writes_at_rest(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, log: Path, seconds: float, **environment: str
) -> tuple[Counter[str], int]:
    """What the operator wrote in so many seconds at rest beside its Lease, and how often it renewed that."""
    prepare(plane, kubelet, namespace)
    user = f"at-rest-{namespace}"
    kubeconfig = plane.kubeconfig(user, "system:masters")
    with operator_process(kubeconfig, user, namespace, log, **environment):
        for name, reason in SETTLED.items():
            wait_for(f"{name} to be {reason}", partial(_is, plane, namespace, name, reason), 90.0)
        time.sleep(SETTLE_SECONDS)
        mark = plane.audit.position()
        time.sleep(seconds)
        asked = [request for request in plane.audit.of_user(user, mark) if request.writes]
    writes = Counter(f"{r.verb} {r.path} {r.name}" for r in asked if r.resource != "leases")
    return writes, sum(r.resource == "leases" for r in asked)
