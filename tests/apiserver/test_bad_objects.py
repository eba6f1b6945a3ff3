"""What one object says, however wrong, is that object's trouble alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.control_plane.components import CRD
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import ControlPlane, control_plane, example, find_binary
from helpers.control_plane.waiting import MERGE, change, collection, condition, resource, wait_for

from localcluster.api import ApiError

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]

# As an older or a broken CRD would have stored them, or another client of the status.
BAD_SPECS: dict[str, Any] = {
    "no-spec": None,
    "number": 7,
    "text": "gpus: 2",
    "empty": {},
    "model-list": {"model": ["pvc://a/b"], "parallelism": {"gpus": 1}},
    "gpus-text": {"model": {"uri": "pvc://a/b"}, "parallelism": {"gpus": "two"}},
    "gpus-null": {"model": {"uri": "pvc://a/b"}, "parallelism": None},
    "replicas-text": {"model": {"uri": "pvc://a/b"}, "parallelism": {"gpus": 1}, "replicas": "many"},
    "replicas-less": {"model": {"uri": "pvc://a/b"}, "parallelism": {"gpus": 1}, "replicas": -3},
    "shift-list": {"model": {"uri": "pvc://a/b"}, "parallelism": {"gpus": 1}, "shift": [1]},
    "scaling-text": {"model": {"uri": "pvc://a/b"}, "parallelism": {"gpus": 1}, "autoscaling": "on"},
    "template-list": {"model": {"uri": "pvc://a/b"}, "parallelism": {"gpus": 1}, "podTemplate": [[]]},
    "template-odd": {
        "model": {"uri": "pvc://a/b"},
        "parallelism": {"gpus": 1},
        "podTemplate": {"spec": {"containers": [{"name": "runtime", "env": "none"}, 5]}},
    },
}
BAD_STATUSES: dict[str, Any] = {
    "status-text": "fine",
    "generation-text": {"policyGeneration": "latest"},
    "conditions-map": {"conditions": {"Ready": True}},
    "conditions-odd": {"conditions": [7, {"type": "Ready"}]},
    "decisions-odd": {"decisions": [None, 3]},
    "pods-odd": {"pods": "p1,p2"},
    "policy-odd": {"policy": [], "policyGeneration": 5},
}


@pytest.fixture(scope="module")
def lax_plane(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One of its own: its CRD lets everything in. Without pods."""
    kube = find_binary()
    assert kube is not None, "the other plane runs"
    with control_plane(kube, tmp_path_factory.mktemp("lax-plane")) as started:
        yield started


def lax_crd() -> Object:
    crd: Object = yaml.safe_load(CRD.read_text())
    [version] = crd["spec"]["versions"]
    anything = {"x-kubernetes-preserve-unknown-fields": True}
    del version["subresources"]["scale"]  # refuses what it could not read
    version["schema"] = {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}}
    return crd


def test_bad_objects_stop_nobody_else(lax_plane: ControlPlane, tmp_path: Path) -> None:
    plane, namespace = lax_plane, "mixed"
    plane.create_namespace(namespace)
    plane.admin.call("POST", collection(namespace), example("good-before", replicas=0))
    strict = copy.deepcopy(yaml.safe_load(CRD.read_text()))
    plane.apply_crd(lax_crd())
    for name, spec in BAD_SPECS.items():
        store(plane, namespace, name, spec)
    for name, status in BAD_STATUSES.items():
        plane.admin.call("POST", collection(namespace), example(name, replicas=0))
        plane.admin.call("PATCH", f"{collection(namespace)}/{name}/status", {"status": status}, MERGE)
    log = tmp_path / "operator.log"
    kubeconfig = plane.kubeconfig("operator", "system:masters")
    with operator_process(kubeconfig, "operator", namespace, log) as operator:
        wait_for("the good one", lambda: condition(plane, namespace, "good-before")[0] == "True", 60.0)
        plane.admin.call("POST", collection(namespace), example("good-after", replicas=0))
        wait_for("another good one", lambda: condition(plane, namespace, "good-after")[0] == "True", 60.0)
        before = generation(plane, namespace, "good-before")
        change(plane, namespace, "good-before", {"shift": {"policy": "Latency"}})
        wait_for("a policy", lambda: generation(plane, namespace, "good-before") > before)
        unhandled = [line for line in operator.log.splitlines() if "reconcile failed" in line]
        said = {name: ready_reason(plane, namespace, name) for name in (*BAD_SPECS, *BAD_STATUSES)}
        assert operator.process.poll() is None
        failed = {line.rpartition("key=mixed/")[2] for line in unhandled}
    plane.apply_crd(strict)
    assert {name: said[name] for name in BAD_SPECS} == dict.fromkeys(BAD_SPECS, "InvalidSpec")
    # A status of another shape than ours is a trace in the log, again and again, and nobody else's trouble.
    assert failed <= set(BAD_STATUSES)


def generation(plane: ControlPlane, namespace: str, name: str) -> int:
    return int(resource(plane, namespace, name)["status"]["policyGeneration"])


def ready_reason(plane: ControlPlane, namespace: str, name: str) -> str:
    status = resource(plane, namespace, name).get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    if not isinstance(conditions, list):
        return ""
    return next((str(c.get("reason")) for c in conditions if isinstance(c, dict) and c.get("type") == "Ready"), "")


def store(plane: ControlPlane, namespace: str, name: str, spec: Any) -> None:
    """The API server may need a moment until it has the lax CRD."""
    body = example(name)
    del body["spec"]
    if spec is not None:
        body["spec"] = spec
    wait_for(f"{name} to be stored", lambda: accepted(plane, namespace, body))


def accepted(plane: ControlPlane, namespace: str, body: Object) -> bool:
    try:
        plane.admin.call("POST", collection(namespace), body)
    except ApiError as error:
        if error.status in (400, 422):
            return False
        raise
    return True
