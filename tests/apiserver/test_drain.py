"""`kubectl shift drain` with the real kubectl, where a PodDisruptionBudget has its say."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.control_plane.kubelet import Behaviour, Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import collection, wait_for
from shiftoperator.kubectl import cli

pytestmark = pytest.mark.timeout(240)

Object = dict[str, Any]
NEVER_READY = Behaviour(start_seconds=3600.0)


@pytest.fixture
def pods(plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator) -> Iterator[list[str]]:
    """Names of two pods that are ready. Those that come later are not."""
    plane.create_claim(namespace)
    plane.admin.call("POST", collection(namespace), example("drained", replicas=2))

    def ready() -> list[str]:
        found = plane.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        return sorted(pod["metadata"]["name"] for pod in found if is_ready(pod))

    wait_for("two pods", lambda: len(ready()) == 2, 90.0)
    budget = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/drained"
    wait_for("their budget", lambda: plane.admin.get(budget).get("status", {}).get("disruptionsAllowed") == 1)
    known = ready()
    kubelet.rule = lambda pod: Behaviour() if pod["metadata"]["name"] in known else NEVER_READY
    yield known
    kubelet.rule = None


def is_ready(pod: Object) -> bool:
    said = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
    return said.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def test_a_pod_is_drained_only_while_the_budget_allows_it(
    plane: ControlPlane, namespace: str, pods: list[str],
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It was deleted whatever the budget said: two of two pods were away."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    user = ["-n", namespace, "--kubeconfig", str(plane.kubeconfig("somebody", "system:masters"))]
    first, second = pods
    assert cli.main(["drain", first, "--yes", "--wait", "0", "-o", "json", *user]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["pod"], told["by"], told["readyPods"]) == (first, "Eviction", [second])

    assert cli.main(["drain", second, "--yes", *user]) == 1
    words, advice = capfd.readouterr().err.splitlines()
    assert words.startswith("Error from server (TooManyRequests): Cannot evict pod")
    assert "--force" in advice
    where = f"/api/v1/namespaces/{namespace}/pods/{second}"
    assert is_ready(plane.admin.get(where))

    assert cli.main(["drain", second, "--yes", "--force", "--wait", "0", *user]) == 0
    wait_for("its end", lambda: (pod := plane.admin.get_or_none(where)) is None or not is_ready(pod))
