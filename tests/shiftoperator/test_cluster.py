"""What is kept of the API server's answers, and what is sent back to it."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
from shiftoperator.cluster import Cluster
from shiftoperator.errors import ConflictError, UserError

Object = dict[str, Any]
ANNOTATIONS = {"f:annotations": {"f:shiftparallel.dev/template-hash": {}}}
STORED: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "namespace": "team",
        "name": "gemma",
        "managedFields": [
            {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {"f:paused": {}}}},
            {
                "manager": "shift-operator",
                "operation": "Apply",
                "fieldsV1": {"f:metadata": {**ANNOTATIONS, "f:labels": {}}, "f:spec": {"f:template": {"f:spec": {}}}},
            },
            {
                "manager": "shift-operator",
                "operation": "Update",
                "subresource": "scale",
                "fieldsV1": {"f:spec": {"f:replicas": {}}},
            },
        ],
    },
    "spec": {"replicas": 2},
}
KEPT = [
    {"manager": "shift-operator", "operation": "Apply", "fieldsV1": {"f:metadata": ANNOTATIONS}},
    STORED["metadata"]["managedFields"][2],
]


class Api:
    """Answers everything with one object."""

    configuration = SimpleNamespace(host="https://api")

    def __init__(self, answer: Object, status: int = 200) -> None:
        self.answer, self.sent, self.status = answer, None, status

    async def update_params_for_auth(self, *_: Any) -> None:
        return

    async def call_api(self, method: str, url: str, headers: Any, body: Any, **_: Any) -> Any:
        self.sent = body
        text = json.dumps(self.answer).encode()

        async def read() -> bytes:
            return text

        return SimpleNamespace(status=self.status, read=read, headers={})


@pytest.fixture
def api() -> Api:
    return Api(copy.deepcopy(STORED))


@pytest.mark.parametrize("how", ["get", "list", "apply", "create", "patch_status"])
async def test_of_managed_fields_only_what_we_ask_for_is_kept(api: Api, how: str) -> None:
    """They were the larger half of what is kept of five hundred resources."""
    cluster = Cluster(api)  # type: ignore[arg-type]
    if how == "list":
        api.answer = {"apiVersion": "apps/v1", "items": [api.answer]}
        [found] = await cluster.list("Deployment", "team")
    elif how == "get":
        found = await cluster.get("Deployment", "team", "gemma") or {}
    elif how == "apply":
        found = await cluster.apply(STORED)
    elif how == "create":
        found = await cluster.create(STORED)
    else:
        found = await cluster.patch_status({**STORED, "metadata": {**STORED["metadata"], "uid": "u"}}, {}) or {}
    assert found["metadata"]["managedFields"] == KEPT
    rest = {name: value for name, value in found["metadata"].items() if name != "managedFields"}
    assert (rest, found["spec"]) == ({"namespace": "team", "name": "gemma"}, {"replicas": 2})


async def test_an_object_is_replaced_without_what_we_know_of_its_managed_fields(api: Api) -> None:
    cluster = Cluster(api)  # type: ignore[arg-type]
    found = await cluster.get("Deployment", "team", "gemma") or {}
    await cluster.replace(found)
    assert api.sent == {**found, "metadata": {"namespace": "team", "name": "gemma"}}


@pytest.mark.parametrize(
    ("field", "raised"), [("status.policyGeneration", ConflictError), ("status.policy.mode", UserError)]
)
async def test_a_generation_that_came_late_is_a_conflict(field: str, raised: type[Exception]) -> None:
    """Of a leader that was: it has to read again, and the resource is not refused."""
    causes = [{"reason": "FieldValueInvalid", "message": "a policy generation only grows", "field": field}]
    said = {"kind": "Status", "message": "ShiftDeployment is invalid", "code": 422, "details": {"causes": causes}}
    cluster = Cluster(Api(said, 422))  # type: ignore[arg-type]
    resource = {"kind": "ShiftDeployment", "metadata": {"namespace": "team", "name": "gemma", "uid": "u1"}}
    with pytest.raises(raised):
        await cluster.patch_status(resource, {"policyGeneration": 6})
