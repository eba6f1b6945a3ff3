"""What the API server refuses is told in the resource, and work goes on when it does not any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.release import released, released_operator
from helpers.control_plane.waiting import change, collection, condition, resource, wait_for
from helpers.rbac_table import rights_of
from shiftprotos.v1 import control_pb2

pytestmark = pytest.mark.timeout(300)

Object = dict[str, Any]

NAME = "gemma"
PATIENCE_SECONDS = 90.0
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles"


@contextmanager
def dead_webhook(plane: ControlPlane, namespace: str) -> Iterator[None]:
    """Asked before a Service is written there, and not there itself."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["services"]}
    hook = {
        "name": "guard.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    plane.admin.call("POST", WEBHOOKS, {"metadata": {"name": namespace}, "webhooks": [hook]})
    try:
        yield
    finally:
        plane.admin.call("DELETE", f"{WEBHOOKS}/{namespace}")


def message(plane: ControlPlane, namespace: str, kind: str = "Ready") -> str:
    conditions = resource(plane, namespace, NAME)["status"]["conditions"]
    return next(str(c["message"]) for c in conditions if c["type"] == kind)


def test_a_webhook_that_is_dead_for_one_kind_is_told_and_policies_still_come(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    """Ready stayed True for as long as it was dead, and nothing else was done for the resource."""
    plane.admin.call("POST", collection(namespace), example(NAME, replicas=1))
    wait_for("Ready", lambda: condition(plane, namespace, NAME)[0] == "True", PATIENCE_SECONDS)
    with dead_webhook(plane, namespace):
        # What was configured just now may not count yet: then the Service is made again, and taken away again.
        wait_for("the word", lambda: told_without_a_service(plane, namespace), PATIENCE_SECONDS)
        assert 'failed calling webhook "guard.example.com"' in message(plane, namespace)
        assert condition(plane, namespace, NAME, "Available")[0] == "True"
        change(plane, namespace, NAME, {"shift": {"policy": "Latency"}})
        [runtime] = kubelet.runtimes(namespace, NAME).values()
        wait_for("the policy", lambda: runtime.policy.mode == control_pb2.POLICY_MODE_LATENCY, PATIENCE_SECONDS)
    wait_for("Ready again", lambda: condition(plane, namespace, NAME)[0] == "True", PATIENCE_SECONDS)


def told_without_a_service(plane: ControlPlane, namespace: str) -> bool:
    path = f"/api/v1/namespaces/{namespace}/services/{NAME}"
    if plane.admin.get_or_none(path) is not None:
        plane.admin.call("DELETE", path)
    return condition(plane, namespace, NAME) == ("False", "WriteFailing")


def test_rights_that_were_forgotten_are_told_each(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, tmp_path: Path
) -> None:
    """A trace in the log, again and again, and a status that stood still."""
    plane.create_claim(namespace)
    with (
        released(plane, namespace, (namespace,)),
        released_operator(plane, namespace, (namespace,), tmp_path / "operator.log") as operator,
    ):
        plane.admin.call("POST", collection(namespace), example(NAME, replicas=1))
        wait_for("Ready", lambda: condition(plane, namespace, NAME)[0] == "True", PATIENCE_SECONDS)
        for resources, verb in (("services", "get"), ("pods", "list"), ("shiftdeployments", "get")):
            with without(plane, namespace, resources, verb):
                wait_for(resources, lambda: condition(plane, namespace, NAME) == ("False", "Forbidden"), 60.0)
                assert f'cannot {verb} resource "{resources}"' in message(plane, namespace)
            wait_for("Ready again", lambda: condition(plane, namespace, NAME)[0] == "True", 60.0)
        change(plane, namespace, NAME, {"autoscaling": {"mode": "Apply", "min": 1, "max": 2}})
        with without(plane, namespace, "horizontalpodautoscalers", "list"):
            scaling = "ScalingActive"
            wait_for(scaling, lambda: condition(plane, namespace, NAME, scaling) == ("False", "Forbidden"), 60.0)
            assert condition(plane, namespace, NAME)[0] == "True"
        wait_for(scaling, lambda: condition(plane, namespace, NAME, scaling)[0] == "True", 60.0)
        assert "Traceback" not in operator.log


@contextmanager
def without(plane: ControlPlane, namespace: str, resources: str, verb: str) -> Iterator[None]:
    [role] = [r for r in plane.admin.get(ROLES.format(namespace))["items"] if grants(r, resources, verb)]
    left = [
        {"apiGroups": [right[0]], "resources": [right[1]], "verbs": [right[2]]}
        for rule in role["rules"]
        for right in rights_of(rule)
        if right[1:] != (resources, verb)
    ]
    path = f"{ROLES.format(namespace)}/{role['metadata']['name']}"
    fresh = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": role["metadata"]["name"]},
    }
    plane.admin.call("PUT", path, {**fresh, "rules": left})
    try:
        yield
    finally:
        plane.admin.call("PUT", path, {**fresh, "rules": role["rules"]})


def grants(role: Object, resources: str, verb: str) -> bool:
    return any(right[1:] == (resources, verb) for rule in role["rules"] for right in rights_of(rule))
