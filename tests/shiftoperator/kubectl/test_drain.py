"""`kubectl shift drain`: which pods, what is said before, what is waited for."""

from __future__ import annotations

from typing import Any

from .conftest import Shift, case

Object = dict[str, Any]
SELECTOR = "app.kubernetes.io/name=shift-runtime,shiftparallel.dev/deployment=llama"
ONE, OTHER, NEW = "llama-7c9d-aaaaa", "llama-7c9d-bbbbb", "llama-7c9d-ddddd"


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


def deletes(shift: Shift) -> list[list[str]]:
    return [call for call in shift.calls if call[0] == "delete"]


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
    [call] = deletes(shift)
    assert call[:4] == ["delete", "pod", ONE, "--wait=false"]
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
    assert deletes(shift) == []


def test_a_strange_pod_is_refused(shift: Shift) -> None:
    shift.answer("get-pod-web", {"metadata": {"name": "web", "labels": {"app": "web"}}})
    done = shift("drain", "web", "--yes")
    assert done.code == 1
    assert "pod web belongs to no ShiftDeployment" in done.err
    assert deletes(shift) == []


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
