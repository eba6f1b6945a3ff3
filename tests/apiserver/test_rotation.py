"""`kubectl shift rotate` with the real kubectl, from a machine whose clock is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import collection, resource, wait_for
from shiftoperator.kubectl import cli, output
from shiftprotos import contract

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("skew", [timedelta(days=-400), timedelta(days=400)], ids=["behind", "ahead"])
def test_a_rotation_begins_whatever_this_machines_clock_says(
    plane: ControlPlane, namespace: str, operator: Operator, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], skew: timedelta,
) -> None:  # fmt: skip
    plane.admin.call("POST", collection(namespace), example("leaked", replicas=0))
    path = f"/api/v1/namespaces/{namespace}/secrets/leaked-control-ca"
    before = wait_for("the authority", lambda: plane.admin.get_or_none(path))["data"]
    assert not before.get("next.key")
    # An authority of this very second counts as younger.
    made = datetime.now(UTC)
    wait_for("the next second", lambda: datetime.now(UTC) > made + timedelta(seconds=2))
    monkeypatch.setattr(output, "now", lambda: datetime.now(UTC) + skew)
    kubeconfig = plane.kubeconfig("somebody", "system:masters")
    assert cli.main(["rotate", "leaked", "-n", namespace, "--kubeconfig", str(kubeconfig)]) == 0
    asked = resource(plane, namespace, "leaked")["metadata"]["annotations"][contract.ANNOTATION_ROTATE]
    assert abs(datetime.fromisoformat(asked) - datetime.now(UTC)) < timedelta(seconds=30)
    assert asked in capfd.readouterr().out
    wait_for("the next authority", lambda: plane.admin.get(path)["data"].get("next.key"))
