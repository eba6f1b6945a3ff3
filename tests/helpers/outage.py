"""The API server goes for a while and comes back, under an operator that leads."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import change, collection, condition, resource, wait_for


@dataclass(frozen=True)
class Recovery:
    stood_by: bool  # the operator noticed and gave up its leadership, without ending
    seconds: float  # from the return of the API server until what was asked for meanwhile is done
    generations: tuple[int, int]  # of the policy, before and after


def outage(plane: ControlPlane, namespace: str, log: Path, seconds: float, ended: bool) -> Recovery:
    """`ended`: the API server's process is killed and started again; else it is stopped and goes on. There are no pods:
    grpc's servers live in one event loop of a process, which the other plane has."""
    user = f"outage-of-{namespace}"
    kubeconfig = plane.kubeconfig(user, "system:masters")
    with operator_process(kubeconfig, user, namespace, log) as operator:
        plane.admin.call("POST", collection(namespace), example("there", replicas=0))
        wait_for("Ready", lambda: condition(plane, namespace, "there")[0] == "True", 60.0)
        before = _generation(plane, namespace)
        if ended:
            plane.stop_api_server()
            time.sleep(seconds)
            plane.start_api_server()
        else:
            plane.pause_api_server()
            time.sleep(seconds)
            plane.resume_api_server()
        started = time.monotonic()
        change(plane, namespace, "there", {"shift": {"policy": "Latency"}})
        plane.admin.call("POST", collection(namespace), example("new", replicas=0))
        wait_for("the policy", lambda: _generation(plane, namespace) > before, 90.0)
        wait_for("the new one", lambda: condition(plane, namespace, "new")[0] == "True", 90.0)
        recovered = time.monotonic() - started
        assert operator.process.poll() is None
        return Recovery("lost leadership" in operator.log, recovered, (before, _generation(plane, namespace)))


def _generation(plane: ControlPlane, namespace: str) -> int:
    return int(resource(plane, namespace, "there")["status"]["policyGeneration"])
