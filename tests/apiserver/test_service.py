"""spec.service on a real API server: set, changed and taken away again."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import MERGE, change, collection, condition, resource, wait_for

from localcluster.api import ApiError

pytestmark = pytest.mark.timeout(300)

Object = dict[str, Any]


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"type": "ExternalName"}, "Unsupported value"),
        ({"tls": {}}, "service.tls.secretName"),
        ({"tls": {"secretName": "Cert"}}, "service.tls.secretName"),
        ({"tls": {"secretName": "cert", "clientAuth": "Maybe"}}, "Unsupported value"),
        ({"annotations": {str(i): "" for i in range(33)}}, "service.annotations"),
    ],
)
def test_a_service_that_cannot_be_is_refused(plane: ControlPlane, service: Object, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        plane.admin.call("POST", f"{collection('default')}?dryRun=All", example("s", service=service))
    assert said in str(refused.value)


def test_a_service_is_changed_and_taken_back_live(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    path = f"/api/v1/namespaces/{namespace}/services/reached"
    wanted = {"type": "NodePort", "annotations": {"cloud.example/zone": "ä", "cloud.example/other": ""}}
    plane.admin.call("POST", collection(namespace), example("reached", service=wanted))
    wait_for("the pod to serve", lambda: condition(plane, namespace, "reached")[0] == "True", 120.0)
    pods = set(kubelet.runtimes(namespace, "reached"))
    made = plane.admin.get(path)
    assert (made["spec"]["type"], made["metadata"]["annotations"]) == ("NodePort", wanted["annotations"])
    assert all(port["nodePort"] for port in made["spec"]["ports"])
    theirs = {"metadata": {"annotations": {"controller.example/id": "1"}}}
    plane.admin.call("PATCH", path, theirs, "application/merge-patch+json")
    change(plane, namespace, "reached", {"service": None})
    wait_for("the type before", lambda: plane.admin.get(path)["spec"]["type"] == "ClusterIP")
    wait_for(
        "only what others wrote",
        lambda: plane.admin.get(path)["metadata"].get("annotations") == theirs["metadata"]["annotations"],
    )
    assert set(kubelet.runtimes(namespace, "reached")) == pods, "no pod was replaced"


def test_a_certificate_that_is_not_there_is_named(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    asked = example("sealed", service={"tls": {"secretName": "sealed-cert"}})
    plane.admin.call("POST", collection(namespace), asked)
    wait_for("the reason", lambda: condition(plane, namespace, "sealed") == ("False", "SecretMissing"), 30.0)
    secret = {"metadata": {"name": "sealed-cert"}, "data": {"tls.crt": "", "tls.key": ""}}
    plane.admin.call("POST", f"/api/v1/namespaces/{namespace}/secrets", secret)
    wait_for("the pod", lambda: condition(plane, namespace, "sealed")[0] == "True", 120.0)


@pytest.mark.parametrize("field", ["data", "stringData"])
def test_a_certificate_without_what_signs_those_of_clients_is_named(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator, field: str
) -> None:
    """Told from the Secret's metadata alone, however it was written."""
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    plane.admin.call("POST", secrets, {"metadata": {"name": "c"}, field: {"tls.crt": "QQ==", "tls.key": "QQ=="}})
    asked = example("mutual", service={"tls": {"secretName": "c", "clientAuth": "Required"}})
    plane.admin.call("POST", collection(namespace), asked)
    wait_for("the reason", lambda: condition(plane, namespace, "mutual") == ("False", "SecretMissing"), 30.0)
    [told] = [c for c in resource(plane, namespace, "mutual")["status"]["conditions"] if c["type"] == "Ready"]
    assert (
        "Secret c of service.tls has no ca.crt, which clientAuth Required needs; add the certificate" in told["message"]
    )
    plane.admin.call("PATCH", f"{secrets}/c", {field: {"ca.crt": "QQ=="}}, MERGE)
    wait_for("the pod", lambda: condition(plane, namespace, "mutual")[0] == "True", 120.0)
