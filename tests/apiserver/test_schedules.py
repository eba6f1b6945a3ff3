"""Policies by the clock on a real API server: what it refuses, and a border that comes by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import change, collection, condition, wait_for
from shiftprotos.v1 import control_pb2

from localcluster.api import ApiError

pytestmark = pytest.mark.timeout(300)

Object = dict[str, Any]
NIGHT: Object = {"name": "night", "start": "22:00", "end": "06:00", "policy": "Throughput"}


@pytest.mark.parametrize(
    ("schedules", "said"),
    [
        ([{**NIGHT, "end": "22:00"}], "'night': start and end are both 22:00"),
        ([NIGHT, NIGHT], "has a name twice"),
        ([{**NIGHT, "start": "24:00"}], "schedules[0].start"),
        ([{**NIGHT, "start": "9:00"}], "schedules[0].start"),
        ([{**NIGHT, "days": []}], "schedules[0].days"),
        ([{**NIGHT, "days": ["Mon", "Mon"]}], "Duplicate value"),
        ([{**NIGHT, "days": ["Monday"]}], "Unsupported value"),
        ([{**NIGHT, "timeZone": "../etc"}], "schedules[0].timeZone"),
        ([{**NIGHT, "name": "Nacht ☾"}], "schedules[0].name"),
        ([{**NIGHT, "name": f"n{i}"} for i in range(17)], "Too many"),
        ([{key: value for key, value in NIGHT.items() if key != "policy"}], "schedules[0].policy"),
    ],
)
def test_a_schedule_that_cannot_hold_is_refused(plane: ControlPlane, schedules: list[Object], said: str) -> None:
    with pytest.raises(ApiError) as refused:
        plane.admin.call("POST", f"{collection('default')}?dryRun=All", example("s", shift={"schedules": schedules}))
    assert said in str(refused.value)


def test_the_most_that_is_allowed_is_accepted(plane: ControlPlane) -> None:
    schedules = [{**NIGHT, "name": f"{i:x}" * 63, "end": "24:00", "thresholdTokens": 1048576} for i in range(16)]
    made = plane.admin.call(
        "POST",
        f"{collection('default')}?dryRun=All&fieldValidation=Strict",
        example("s", shift={"schedules": schedules}),
    )
    assert json.loads(made)["spec"]["shift"]["schedules"][15]["timeZone"] == "UTC"


def test_a_border_comes_by_itself(plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator) -> None:
    path = f"{collection(namespace)}/nightly"
    plane.admin.call("POST", collection(namespace), example("nightly"))
    wait_for("the pod to serve", lambda: condition(plane, namespace, "nightly")[0] == "True", 120.0)
    border = (datetime.now(UTC) + timedelta(seconds=65)).replace(second=0, microsecond=0)
    schedule = {"name": "night", "policy": "Throughput", "start": f"{border:%H:%M}"}
    schedule["end"] = f"{border + timedelta(hours=2):%H:%M}"
    change(plane, namespace, "nightly", {"shift": {"schedules": [schedule]}})
    wait_for("the window", lambda: plane.admin.get(path)["status"].get("schedule", {}).get("name") == "night", 120.0)
    assert datetime.now(UTC) >= border
    (runtime,) = kubelet.runtimes(namespace, "nightly").values()
    wait_for("the pod to have it", lambda: runtime.policy.mode == control_pb2.POLICY_MODE_THROUGHPUT)
    assert plane.admin.get(path)["status"]["policy"] == {"mode": "Throughput"}
