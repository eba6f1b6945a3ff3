"""Waiting with a deadline, and what tests look at again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from helpers.control_plane.plane import ControlPlane

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{}"


def wait_for(what: str, holds: Callable[[], Any], seconds: float = 40.0) -> Any:
    """The first value that counts as true."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return value


def collection(namespace: str) -> str:
    return f"/apis/shiftparallel.dev/v1alpha1/namespaces/{namespace}/shiftdeployments"


def resource(plane: ControlPlane, namespace: str, name: str) -> Object:
    return plane.admin.get(f"{collection(namespace)}/{name}")


def change(plane: ControlPlane, namespace: str, name: str, spec: Object) -> None:
    plane.admin.call("PATCH", f"{collection(namespace)}/{name}", {"spec": spec}, MERGE)


def condition(plane: ControlPlane, namespace: str, name: str, kind: str = "Ready") -> tuple[str, str]:
    """Its status and reason."""
    conditions = resource(plane, namespace, name).get("status", {}).get("conditions", [])
    return next(((c["status"], c["reason"]) for c in conditions if c["type"] == kind), ("", ""))


def holder(plane: ControlPlane, namespace: str, lease: str = "shift-operator") -> str:
    found = plane.admin.get_or_none(LEASE.format(namespace, lease)) or {"spec": {}}
    return str(found["spec"].get("holderIdentity", ""))
