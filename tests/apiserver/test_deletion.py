"""From the moment that a ShiftDeployment is being deleted, nothing is made for it any more, however long that takes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import MERGE, change, collection, condition, wait_for

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]
NAME = "leaves"
FOREIGN = "example.com/archive"
# Several times the interval at which a resource is compared, and past the next list of all of them.
WATCHED_SECONDS = 5.0


def child(kind: str, namespace: str, name: str = NAME) -> str:
    group = {"services": "/api/v1", "serviceaccounts": "/api/v1", "deployments": "/apis/apps/v1"}[kind]
    return f"{group}/namespaces/{namespace}/{kind}/{name}"


def writes(plane: ControlPlane, operator: Operator, mark: int) -> list[str]:
    asked = plane.audit.of_user(operator.user, mark)
    return [f"{r.verb} {r.path} {r.name}" for r in asked if r.writes and r.resource != "leases"]


def test_nothing_is_made_while_a_foreign_finalizer_holds_the_resource(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    made = example(NAME, replicas=1)
    made["metadata"]["finalizers"] = [FOREIGN]
    plane.admin.call("POST", collection(namespace), made)
    wait_for("Ready", lambda: condition(plane, namespace, NAME)[0] == "True")

    plane.admin.call("DELETE", f"{collection(namespace)}/{NAME}")
    wait_for("its work to end", lambda: f"gone key={namespace}/{NAME}" in operator.log)
    mark = plane.audit.position()
    for kind in ("services", "deployments"):
        plane.admin.call("DELETE", child(kind, namespace))
    # The fast path must not answer either.
    change(plane, namespace, NAME, {"shift": {"policy": "Throughput"}})
    change(plane, namespace, NAME, {"engine": {"maxNumSeqs": 3}})
    time.sleep(WATCHED_SECONDS)
    assert writes(plane, operator, mark) == []
    assert plane.admin.get_or_none(child("deployments", namespace)) is None

    body = {"metadata": {"finalizers": []}}
    plane.admin.call("PATCH", f"{collection(namespace)}/{NAME}", body, MERGE)
    wait_for("the rest to be collected", lambda: not left(plane, namespace))
    assert writes(plane, operator, mark) == []
    assert "ERROR" not in operator.log


def test_nothing_is_made_while_children_are_deleted_before_their_owner(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    """Foreground deletion: the resource is there until its children are gone."""
    plane.admin.call("POST", collection(namespace), example(NAME, replicas=1))
    wait_for("Ready", lambda: condition(plane, namespace, NAME)[0] == "True")
    mark = plane.audit.position()
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
    plane.admin.call("DELETE", f"{collection(namespace)}/{NAME}", options)
    wait_for("everything to go", lambda: not left(plane, namespace))
    made = [r for r in plane.audit.of_user(operator.user, mark) if r.code == 201 and r.resource != "events"]
    assert [f"{r.verb} {r.path}" for r in made] == []


def test_a_new_one_of_the_same_name_starts_anew(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    for _ in range(3):
        plane.admin.call("POST", collection(namespace), example(NAME, replicas=1))
        wait_for("Ready", lambda: condition(plane, namespace, NAME)[0] == "True", 60.0)
        plane.admin.call("DELETE", f"{collection(namespace)}/{NAME}")
        wait_for("its end", lambda: plane.admin.get_or_none(f"{collection(namespace)}/{NAME}") is None)
    wait_for("the rest to be collected", lambda: not left(plane, namespace))
    assert "ERROR" not in operator.log


def left(plane: ControlPlane, namespace: str) -> list[str]:
    """What of the resource is there, itself included."""
    paths = (
        collection(namespace),
        f"/api/v1/namespaces/{namespace}/pods",
        f"/api/v1/namespaces/{namespace}/services",
        f"/api/v1/namespaces/{namespace}/secrets",
        f"/apis/apps/v1/namespaces/{namespace}/deployments",
        f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions",
        f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
        f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    )
    return [item["metadata"]["name"] for path in paths for item in plane.admin.get(path)["items"]]
