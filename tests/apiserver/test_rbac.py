"""With the rights of the chart and no others the operator does everything it can do, and it uses all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.control_plane.audit import Request
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.release import released, released_operator
from helpers.control_plane.waiting import MERGE, wait_for
from helpers.rbac_table import Right, rights_of, unused
from shiftprotos import contract
from shiftprotos.v1 import inference_pb2

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]
RBAC = "/apis/rbac.authorization.k8s.io/v1"
NAME = "all"


class Everything:
    """One ShiftDeployment taken through all that makes the operator ask the API server for something."""

    def __init__(self, plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
        self._plane, self._kubelet, self._namespace = plane, kubelet, namespace
        self._path = f"/apis/shiftparallel.dev/v1alpha1/namespaces/{namespace}/shiftdeployments"

    def run(self) -> None:
        self.create()
        self.change_policy()
        self._add_a_pod_for_waiting_requests()
        self._mark_a_pod_and_replace_it_after_all()
        self._store_more_templates_than_are_kept()
        self._repair()
        self.delete()

    def create(self) -> None:
        windows = {"scaleOutSeconds": 0, "scaleInSeconds": 3, "podStartSeconds": 60, "drainSeconds": 60}
        scaling = {"mode": "Apply", "min": 1, "max": 2, "windows": windows}
        self._plane.create_claim(self._namespace)
        self._plane.admin.call("POST", self._path, example(NAME, replicas=1, autoscaling=scaling))
        wait_for("Ready", lambda: self._condition("Ready")["status"] == "True")
        # From now on there is something to go back to, and a new template is checked against what its pods need.
        wait_for("a good revision", lambda: self._get()["status"].get("rollout", {}).get("goodRevision"))

    def change_policy(self) -> None:
        before = self._get()["status"]["policyGeneration"]
        self._patch({"shift": {"policy": "Latency"}})
        wait_for("the policy", lambda: self._get()["status"]["policyGeneration"] > before)

    def _add_a_pod_for_waiting_requests(self) -> None:
        self._load(waiting_requests=20, oldest_wait_seconds=30.0, running_requests=16)
        wait_for("the scale-out", lambda: self._get()["spec"]["replicas"] == 2)
        wait_for("two pods", lambda: len(self._kubelet.runtimes(self._namespace)) == 2)

    def _mark_a_pod_and_replace_it_after_all(self) -> None:
        wait_for("Ready", lambda: self._condition("Ready")["reason"] == "AllPodsReady")
        self._load(running_requests=1)
        name, runtime = wait_for("a pod that drains", self._draining)
        # Raised while the marked pod still works: it is to stay, and can only be replaced.
        body = {"spec": {"replicas": 3}}
        self._plane.admin.call("PATCH", f"{self._path}/{NAME}/scale", body, MERGE)
        runtime.load = inference_pb2.Load(max_running_requests=16, kv_blocks_total=100, kv_blocks_free=100)
        wait_for("the deletion", lambda: name not in self._kubelet.runtimes(self._namespace))

    def _store_more_templates_than_are_kept(self) -> None:
        """Each template of six has pods once; the oldest is thrown away."""
        self._patch({"autoscaling": {"mode": "Disabled"}, "replicas": 0})
        wait_for("no pods", lambda: not self._kubelet.runtimes(self._namespace))
        for number in range(1, 7):
            self._patch({"engine": {"maxNumSeqs": number}})
            wait_for("the template", lambda n=number: self._newest_revision() >= n + 1)  # type: ignore[misc]
        wait_for("the end of the oldest template", lambda: len(self._revisions()) == 5)

    def _repair(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/services/{NAME}-headless"
        self._plane.admin.call("DELETE", path)
        wait_for("the service", lambda: self._plane.admin.problem(path) is None)
        # What was made once and not applied is applied when somebody changed it.
        secret, label = f"/api/v1/namespaces/{self._namespace}/secrets/{NAME}-control", contract.LABEL_MANAGED_BY
        self._plane.admin.call("PATCH", secret, {"metadata": {"labels": {label: None}}}, MERGE)
        wait_for("the label", lambda: label in self._plane.admin.get(secret)["metadata"]["labels"])

    def delete(self) -> None:
        self._plane.admin.call("DELETE", f"{self._path}/{NAME}")
        wait_for("the end of pods", lambda: not self._kubelet.runtimes(self._namespace))

    # --- looking ---

    def _get(self) -> Object:
        return self._plane.admin.get(f"{self._path}/{NAME}")

    def _patch(self, spec: Object) -> None:
        self._plane.admin.call("PATCH", f"{self._path}/{NAME}", {"spec": spec}, MERGE)

    def _condition(self, kind: str) -> Object:
        conditions = self._get().get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {"status": "", "reason": ""})

    def _load(self, **figures: Any) -> None:
        for runtime in self._kubelet.runtimes(self._namespace).values():
            runtime.load = inference_pb2.Load(
                max_running_requests=16, kv_blocks_total=100, kv_blocks_free=100, **figures
            )

    def _draining(self) -> Any:
        return next(((n, r) for n, r in self._kubelet.runtimes(self._namespace).items() if r.draining), None)

    def _revisions(self) -> list[Object]:
        found: list[Object] = self._plane.admin.get(f"/apis/apps/v1/namespaces/{self._namespace}/controllerrevisions")[
            "items"
        ]
        return found

    def _newest_revision(self) -> int:
        return max((revision["revision"] for revision in self._revisions()), default=0)


@pytest.fixture(scope="module")
def own_namespace(plane: ControlPlane) -> Iterator[str]:
    plane.create_namespace("rights")
    yield "rights"
    plane.delete_namespace("rights")


def test_namespaced_mode_uses_every_right_and_needs_no_other(
    plane: ControlPlane, kubelet: Kubelet, own_namespace: str, tmp_path: Path
) -> None:
    with released(plane, own_namespace, (own_namespace,)):
        assert not cluster_roles(plane, own_namespace), "namespaced mode needs none"
        granted = grants(plane, own_namespace)
        mark = plane.audit.position()
        with released_operator(plane, own_namespace, (own_namespace,), tmp_path / "operator.log") as operator:
            Everything(plane, kubelet, own_namespace).run()
            user = operator.user
        asked = plane.audit.of_user(user, mark)
    assert refused(asked) == []
    assert used(asked) - granted == set()
    assert granted - used(asked) == set(unused()), "docs/RBAC.md says which rights this run does not need, and why"


def test_cluster_mode_serves_every_namespace(
    plane: ControlPlane, kubelet: Kubelet, own_namespace: str, namespace: str, tmp_path: Path
) -> None:
    """The rules are those of the other mode, as tests/contract shows; here they hold in a namespace made later."""
    with released(plane, own_namespace, ()):
        assert len(cluster_roles(plane, own_namespace)) == 3
        granted = grants(plane, own_namespace)
        mark = plane.audit.position()
        with released_operator(plane, own_namespace, (), tmp_path / "operator.log") as operator:
            everything = Everything(plane, kubelet, namespace)
            everything.create()
            everything.change_policy()
            everything.delete()
            user = operator.user
        asked = plane.audit.of_user(user, mark)
    assert refused(asked) == []
    assert used(asked) <= granted
    watched = {request.uri.partition("?")[0] for request in asked if request.verb == "watch"}
    assert watched == {"/api/v1/pods", "/apis/shiftparallel.dev/v1alpha1/shiftdeployments"}


def cluster_roles(plane: ControlPlane, namespace: str) -> list[Object]:
    """Made by the chart's release in this namespace."""
    found = []
    for kind in ("clusterroles", "clusterrolebindings"):
        for item in plane.admin.get(f"{RBAC}/{kind}")["items"]:
            if item["metadata"].get("annotations", {}).get("meta.helm.sh/release-namespace") == namespace:
                found.append(item)
    return [item for item in found if "rules" in item]


def grants(plane: ControlPlane, namespace: str) -> set[Right]:
    """What the chart's roles allow the service account, as the API server has them."""
    roles = plane.admin.get(f"{RBAC}/namespaces/{namespace}/roles")["items"]
    own = [r for r in cluster_roles(plane, namespace) if not r["metadata"]["name"].endswith(("-edit", "-view"))]
    return {right for role in (*roles, *own) for rule in role["rules"] for right in rights_of(rule)}


def used(asked: list[Request]) -> set[Right]:
    rights = set()
    for request in asked:
        resource = f"{request.resource}/{request.subresource}" if request.subresource else request.resource
        if not resource:
            continue  # discovery, which everybody who is known may do
        rights.add((request.group, resource, request.verb))
        if request.verb == "patch" and request.code == 201:
            # Server-side apply of what did not exist: the API server asks for both.
            rights.add((request.group, resource, "create"))
    return rights


def refused(asked: list[Request]) -> list[str]:
    return [f"{request.verb} {request.uri} {request.code}" for request in asked if request.code in (401, 403)]
