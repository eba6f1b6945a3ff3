"""The real HorizontalPodAutoscaler controller drives `/scale` by an external metric, and the operator keeps out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import MERGE, change, collection, condition, resource, wait_for
from helpers.external_metrics import METRIC, Metric, external_metrics
from shiftoperator import retire
from shiftoperator.snapshot import Snapshot

pytestmark = pytest.mark.timeout(240)

NAME = "driven"
WATCHED_SECONDS = 3.0  # several of the operator's intervals, and of its own window to scale in


@pytest.fixture
def metric(plane: ControlPlane, namespace: str) -> Iterator[Metric]:
    with external_metrics(plane, namespace) as served:
        yield served


def autoscaler() -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": "1"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": NAME},
        "spec": {
            "scaleTargetRef": {"apiVersion": "shiftparallel.dev/v1alpha1", "kind": "ShiftDeployment", "name": NAME},
            "minReplicas": 1,
            "maxReplicas": 4,
            "metrics": [{"type": "External", "external": {"metric": {"name": METRIC}, "target": target}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }


def test_an_autoscaler_of_kubernetes_drives_the_size_and_ours_keeps_out_until_it_is_gone(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator, metric: Metric
) -> None:
    """Left to itself ours would go down to one pod: nothing is asked of them."""
    windows = {"scaleInSeconds": 1, "scaleOutSeconds": 1}
    own = {"mode": "Apply", "min": 1, "max": 4, "windows": windows}
    scalers = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    metric.value = 3
    plane.admin.call("POST", scalers, autoscaler())
    plane.admin.call("POST", collection(namespace), example(NAME, replicas=1, autoscaling=own))

    wait_for("three pods", lambda: serves(plane, namespace, 3), 90.0)
    assert scaling(plane, namespace) == ("False", "ExternalScaler")
    mark = plane.audit.position()
    time.sleep(WATCHED_SECONDS)
    assert resource(plane, namespace, NAME)["spec"]["replicas"] == 3
    metric.value = 2
    wait_for("two pods", lambda: serves(plane, namespace, 2), 60.0)
    scaled = [
        r for r in plane.audit.requests(mark) if r.writes and r.path == "shiftdeployments/scale.shiftparallel.dev"
    ]
    assert {r.user for r in scaled if r.namespace == namespace} == {"kube-controller-manager"}

    plane.admin.call("DELETE", f"{scalers}/{NAME}")
    wait_for("one pod, by ours", lambda: serves(plane, namespace, 1), 90.0)
    assert scaling(plane, namespace)[1] != "ExternalScaler"
    scaled = [r for r in plane.audit.of_user(operator.user, mark) if r.writes and r.subresource == "scale"]
    assert [r.code for r in scaled] == [200]


def test_who_changed_the_size_last_is_known(plane: ControlPlane, namespace: str) -> None:
    """What tells a scale-in of ours, whose answer was lost, from one of a person."""

    def scale(manager: str, replicas: int) -> bool:
        where = f"{collection(namespace)}/sized/scale?fieldManager={manager}"
        plane.admin.call("PATCH", where, {"spec": {"replicas": replicas}}, MERGE)
        return retire.sized_by_us(Snapshot(resource(plane, namespace, "sized"), {}, ()))

    plane.admin.call("POST", collection(namespace), example("sized", replicas=3))
    said = [scale("shift-operator", 2), scale("kubectl", 1), scale("shift-operator", 2), scale("kubectl-scale", 2)]
    assert said == [True, False, True, True], "the last one changed nothing"
    change(plane, namespace, "sized", {"replicas": 1})
    assert not retire.sized_by_us(Snapshot(resource(plane, namespace, "sized"), {}, ()))


def scaling(plane: ControlPlane, namespace: str) -> tuple[str, str]:
    return condition(plane, namespace, NAME, "ScalingActive")


def serves(plane: ControlPlane, namespace: str, number: int) -> bool:
    found = resource(plane, namespace, NAME)
    ready = found.get("status", {}).get("readyOfDesired")
    return found["spec"]["replicas"] == number and ready == f"{number}/{number}"
