"""What people get wrong is said with its own reason, and with the words that lead to the cure, soon after it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import ControlPlane
from helpers.failures.processes import patience
from helpers.misoperations import LIMIT_SECONDS, MISTAKES, make_all, watch

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def places(plane: ControlPlane, namespace: str) -> Iterator[dict[str, str]]:
    """Namespaces by what they forbid."""
    named = {"plain": namespace, "quota": f"{namespace}-quota", "restricted": f"{namespace}-restricted"}
    for kind in ("quota", "restricted"):
        plane.create_namespace(named[kind])
    limit = {"hard": {"pods": "0"}}
    path = f"/api/v1/namespaces/{named['quota']}/resourcequotas"
    plane.admin.call("POST", path, {"metadata": {"name": "none"}, "spec": limit})
    # No controller counts here.
    counted = {"status": {**limit, "used": {"pods": "0"}}}
    plane.admin.call("PATCH", f"{path}/none/status", counted, "application/merge-patch+json")
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    plane.admin.call("PATCH", f"/api/v1/namespaces/{named['restricted']}", labels, "application/merge-patch+json")
    yield named
    for kind in ("quota", "restricted"):
        plane.delete_namespace(named[kind])


@pytest.fixture
def everywhere(plane: ControlPlane, places: dict[str, str], tmp_path: Path) -> Iterator[Operator]:
    user = f"operator-of-{places['plain']}"
    kubeconfig, log = plane.kubeconfig(user, "system:masters"), tmp_path / "operator.log"
    served = {"SHIFT_WATCH_NAMESPACES": ",".join(places.values()), "SHIFT_LEASE_SECONDS": "15"}
    with operator_process(kubeconfig, user, places["plain"], log, **served) as running:
        yield running


def test_every_mistake_has_its_reason_soon(
    plane: ControlPlane, kubelet: Kubelet, places: dict[str, str], everywhere: Operator
) -> None:
    limit = LIMIT_SECONDS * patience()
    told = watch(plane, make_all(plane, kubelet, places), 60.0 + limit)
    for label, said in told.items():
        print(f"{label} | {MISTAKES[label].seen.__doc__} | {said.reason} | {said.seconds:.2f} s | {said.message}")
    assert {label: said.reason for label, said in told.items()} == {k: m.reason for k, m in MISTAKES.items()}
    assert {label: said.message for label, said in told.items() if MISTAKES[label].words not in said.message} == {}
    assert [label for label, said in told.items() if said.seconds > limit] == []
    assert "reconcile failed" not in everywhere.log
