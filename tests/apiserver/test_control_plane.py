"""The control plane that tests of this tier stand on, and its stand-in for nodes and runtimes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from helpers.control_plane.kubelet import Behaviour, Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from shiftprotos.v1 import control_pb2, control_pb2_grpc

pytestmark = pytest.mark.timeout(120)

Object = dict[str, Any]
DEPLOYMENTS = "/apis/shiftparallel.dev/v1alpha1/namespaces/{}/shiftdeployments"


def wait_for(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)
    return value


def ready_reason(plane: ControlPlane, namespace: str, name: str) -> tuple[str, str]:
    found = plane.admin.get(f"{DEPLOYMENTS.format(namespace)}/{name}")
    conditions = found.get("status", {}).get("conditions", [])
    return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "Ready"), ("", ""))


def pods(plane: ControlPlane, namespace: str) -> list[Object]:
    found: list[Object] = plane.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return found


def test_from_a_resource_to_ready_pods_that_answer(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    mark = plane.audit.position()
    plane.admin.call("POST", DEPLOYMENTS.format(namespace), example("life", replicas=2))
    wait_for(lambda: ready_reason(plane, namespace, "life")[0] == "True")
    running = kubelet.runtimes(namespace, "life")
    assert len(running) == 2
    wait_for(lambda: all(runtime.policy.generation >= 1 for runtime in running.values()))

    address = pods(plane, namespace)[0]["status"]["podIP"]
    with grpc.insecure_channel(f"{address}:9001") as channel, pytest.raises(grpc.RpcError) as refused:
        control_pb2_grpc.ControlStub(channel).GetState(control_pb2.GetStateRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, "without a certificate there is no connection"

    asked = plane.audit.of_user(operator.user, mark)
    created = {request.path for request in asked if request.code == 201}
    assert {"deployments.apps", "services", "secrets", "poddisruptionbudgets.policy"} <= created

    plane.admin.call("DELETE", f"{DEPLOYMENTS.format(namespace)}/life")
    wait_for(lambda: not pods(plane, namespace) and not kubelet.runtimes(namespace))


def test_pods_do_as_they_are_told(plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator) -> None:
    kubelet.behave(namespace, "odd", Behaviour(place=False))
    plane.admin.call("POST", DEPLOYMENTS.format(namespace), example("odd"))
    wait_for(lambda: ready_reason(plane, namespace, "odd") == ("False", "Unschedulable"))
    told = '{"reason": "ModelNotFound", "message": "no such file"}'
    kubelet.behave(namespace, "odd", Behaviour(exit_code=1, message=told))
    wait_for(lambda: ready_reason(plane, namespace, "odd") == ("False", "ModelNotFound"))
    kubelet.behave(namespace, "odd", Behaviour(ready=False))
    wait_for(lambda: kubelet.runtimes(namespace, "odd"))
    kubelet.behave(namespace, "odd", Behaviour())
    wait_for(lambda: ready_reason(plane, namespace, "odd")[0] == "True")
    assert len(pods(plane, namespace)) == 1


def test_the_api_server_may_go_and_come_back(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    plane.stop_api_server()
    plane.start_api_server()
    plane.admin.call("POST", DEPLOYMENTS.format(namespace), example("after"))
    wait_for(lambda: ready_reason(plane, namespace, "after")[0] == "True", 60.0)
    assert operator.process.poll() is None
