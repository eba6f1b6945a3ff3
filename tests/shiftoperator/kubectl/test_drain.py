"""`kubectl shift drain`: which pods, what is said before, what is waited for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Shift, case

Object = dict[str, Any]
SELECTOR = "app.kubernetes.io/name=shift-runtime,shiftparallel.dev/deployment=llama"
ONE, OTHER, NEW = "llama-7c9d-aaaaa", "llama-7c9d-bbbbb", "llama-7c9d-ddddd"
EVICTION = f"create---raw-/api/v1/namespaces/team/pods/{ONE}/eviction"
FORBIDDEN = "Error from server (TooManyRequests): Cannot evict pod as it would violate the pod's disruption budget.\n"


def pod(name: str, ready: bool = True, deleting: bool = False, **annotations: str) -> Object:
    metadata: Object = {"name": name, "uid": f"uid-{name}", "labels": {"shiftparallel.dev/deployment": "llama"}}
    if annotations:
        metadata["annotations"] = {"shiftparallel.dev/retiring": annotations["retiring"]}
    if deleting:
        metadata["deletionTimestamp"] = "2030-01-01T12:00:00Z"
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": metadata,
        "spec": {"terminationGracePeriodSeconds": 60},
        "status": {"conditions": conditions},
    }


def listed(*pods: Object) -> Object:
    return {"kind": "List", "items": list(pods)}


def cluster(shift: Shift, *pods: Object) -> None:
    shift.resource(case("healthy"))
    shift.answer(f"get-pod-{ONE}", pod(ONE))
    shift.answer("get-pods", listed(*(pods or (pod(ONE), pod(OTHER)))))
    shift.answer(f"delete-pod-{ONE}", "pod/llama\n")
    shift.answer(EVICTION.replace("/", "_"), {"kind": "Status", "status": "Success"})


def ends(shift: Shift) -> list[list[str]]:
    """Calls that take the pod away."""
    return [call for call in shift.calls if call[0] in ("delete", "create")]


def test_drains_and_waits_for_the_successor(shift: Shift) -> None:
    cluster(shift)
    # Empty: with --ignore-not-found that is a pod which is gone.
    shift.answer(f"get-pod-{ONE}", pod(ONE), pod(ONE, deleting=True), "\n")
    shift.answer(
        "get-pods",
        listed(pod(ONE), pod(OTHER)),
        listed(pod(OTHER), pod(NEW, ready=False)),
        listed(pod(OTHER), pod(NEW)),
    )
    done = shift("drain", f"pod/{ONE}", "--yes")
    assert done.code == 0
    assert done.err.splitlines() == [
        f"waiting: pod {ONE} finishes what it runs",
        "waiting: 1 of 2 pods are ready; the new one starts",
    ]
    assert done.out.splitlines()[-2:] == [f"pod {ONE} drains", f"pod {ONE} is gone; 2 pods are ready"]
    [call] = ends(shift)
    assert call[:5] == ["create", "--raw", f"/api/v1/namespaces/team/pods/{ONE}/eviction", "-f", "-"]
    assert shift.given == {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": ONE, "namespace": "team"},
        "deleteOptions": {"preconditions": {"uid": f"uid-{ONE}"}},
    }
    assert next(call[5] for call in shift.calls if call[1] == "pods") == SELECTOR


def gone_as(name: str) -> Object:
    """A StatefulSet would give the name to another pod: another uid is another pod."""
    return {**pod(ONE), "metadata": {**pod(ONE)["metadata"], "uid": f"uid-{name}"}}


def test_says_what_will_happen(shift: Shift) -> None:
    cluster(shift)
    out = shift("drain", ONE, "--yes", "--wait", "0").out
    assert "takes no new requests from now on and finishes those it has" in out
    assert "After at most 60 s (its termination grace period)" in out
    assert "The Deployment replaces it" in out
    assert f"Until then 1 of 2 pods serve: {OTHER}." in out


def test_the_only_pod_that_serves_is_told(shift: Shift) -> None:
    cluster(shift, pod(ONE), pod(OTHER, ready=False))
    assert "NOTHING SERVES" in shift("drain", ONE, "--yes", "--wait", "0").out


def test_a_pod_that_leaves_already_has_no_successor(shift: Shift) -> None:
    cluster(shift)
    shift.answer(f"get-pod-{ONE}", pod(ONE, retiring="{}"))
    out = shift("drain", ONE, "--yes", "--wait", "0").out
    assert "no other pod takes its place" in out


def test_nobody_to_ask_is_a_no(shift: Shift) -> None:
    cluster(shift)
    done = shift("drain", ONE)
    assert done.code == 1
    assert "say --yes to drain the pod" in done.err
    assert ends(shift) == []


def test_a_strange_pod_is_refused(shift: Shift) -> None:
    shift.answer("get-pod-web", {"metadata": {"name": "web", "labels": {"app": "web"}}})
    done = shift("drain", "web", "--yes")
    assert done.code == 1
    assert "pod web belongs to no ShiftDeployment" in done.err
    assert ends(shift) == []


def test_a_disruption_budget_has_its_say(shift: Shift) -> None:
    """The pod was deleted past it."""
    cluster(shift, pod(ONE), pod(OTHER, ready=False))
    shift.answer(EVICTION.replace("/", "_"), FORBIDDEN)
    done = shift("drain", ONE, "--yes")
    assert done.code == 1
    words, advice = done.err.splitlines()
    assert words == FORBIDDEN.strip()
    assert "Wait until the other pods are ready (kubectl shift status llama)" in advice
    assert "spec.disruption.maxUnavailable (now 1)" in advice
    assert "--force" in advice
    assert [call[0] for call in ends(shift)] == ["create"]


def test_who_forces_it_deletes_the_pod(shift: Shift) -> None:
    cluster(shift, pod(ONE), pod(OTHER, ready=False))
    assert shift("drain", ONE, "--yes", "--force", "--wait", "0").code == 0
    [call] = ends(shift)
    assert call[:4] == ["delete", "pod", ONE, "--wait=false"]


@pytest.mark.parametrize(
    "server", ["https://rancher.example/k8s/clusters/c-1", "https://rancher.example/k8s/clusters/c-1/"]
)
def test_an_eviction_goes_to_the_path_of_the_server(shift: Shift, server: str) -> None:
    """kubectl takes a raw path from the root of the host: behind a proxy the eviction went to another API server."""
    cluster(shift)
    where = f"/k8s/clusters/c-1/api/v1/namespaces/team/pods/{ONE}/eviction"
    shift.answer("config-view", server)
    shift.answer(f"create---raw-{where}".replace("/", "_"), {"kind": "Status", "status": "Success"})
    assert shift("drain", ONE, "--yes", "--wait", "0").code == 0
    [call] = ends(shift)
    assert call[2] == where


def test_what_is_no_answer_of_an_api_server_is_no_success(shift: Shift) -> None:
    cluster(shift)
    shift.answer(EVICTION.replace("/", "_"), "<html>welcome</html>\n")
    done = shift("drain", ONE, "--yes", "--wait", "0")
    assert done.code == 1
    assert "no JSON: '<html>" in done.err


def test_an_eviction_that_fails_otherwise_is_told_as_it_is(shift: Shift) -> None:
    cluster(shift)
    shift.answer(EVICTION.replace("/", "_"), "Error from server (Forbidden): you may not\n")
    done = shift("drain", ONE, "--yes")
    assert (done.code, done.err) == (1, "Error from server (Forbidden): you may not\n")


@pytest.mark.parametrize(
    ("arguments", "code", "by", "is_done"),
    [(("--wait", "5"), 0, "Eviction", True), (("--wait", "0", "--force"), 0, "Deletion", False)],
)
def test_as_json(shift: Shift, arguments: tuple[str, ...], code: int, by: str, is_done: bool) -> None:
    cluster(shift)
    shift.answer(f"get-pod-{ONE}", pod(ONE), "\n")
    shift.answer("get-pods", listed(pod(ONE), pod(OTHER)), listed(pod(OTHER), pod(NEW)))
    done = shift("drain", ONE, "--yes", "-o", "json", *arguments)
    assert done.code == code
    told = json.loads(done.out)
    assert told == {
        "namespace": "team", "name": "llama", "pod": ONE, "by": by, "done": is_done, "readyPods": [OTHER, NEW],
    }  # fmt: skip
    assert "Until then 1 of 2 pods serve" in done.err
    help_ = shift("drain", "--help").out
    assert [name for name in told if name not in help_] == []


def test_as_json_at_the_deadline(shift: Shift) -> None:
    cluster(shift)
    done = shift("drain", ONE, "--yes", "-o", "json", "--wait", "0.1")
    assert (done.code, json.loads(done.out)["done"]) == (2, False)


def test_the_deadline(shift: Shift) -> None:
    cluster(shift)
    done = shift("drain", ONE, "--yes", "--wait", "0.1")
    assert done.code == 2
    assert f"not within 0.1 s: pod {ONE} finishes what it runs" in done.err


def test_a_service_that_is_deleted_meanwhile_needs_no_successor(shift: Shift) -> None:
    cluster(shift)
    shift.answer(f"get-pod-{ONE}", pod(ONE), gone_as(NEW))
    shift.answer("get-pods", listed(pod(ONE), pod(OTHER)), listed())
    shift.resource(case("healthy"), case("healthy") | {"spec": {"replicas": 0}})
    assert shift("drain", ONE, "--yes", "--wait", "5").code == 0
