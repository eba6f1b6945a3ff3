from __future__ import annotations

import json
from typing import Any

import pytest
from shiftoperator.snapshot import pod_from
from shiftprotos import contract

Object = dict[str, Any]


def pod_object(container: Object | None = None, conditions: list[Object] | None = None, **metadata: Any) -> Object:
    statuses = [{"name": "runtime", **container}] if container is not None else []
    return {
        "metadata": {"name": "p1", "uid": "u", "annotations": {"shiftparallel.dev/template-hash": "h"}, **metadata},
        "status": {"podIP": "10.0.0.9", "containerStatuses": statuses, "conditions": conditions or []},
    }


def ended(message: str, code: int = 2, **more: Any) -> Object:
    return {"terminated": {"exitCode": code, "message": message, "finishedAt": "2030-01-01T00:00:00Z", **more}}


TOLD = json.dumps({"reason": "InvalidLayout", "message": "4 query heads do not divide over 3 ranks"})


@pytest.mark.parametrize(
    ("conditions", "since"),
    [
        ([], 1_000_000_000.0),
        ([{"type": "Ready", "status": "False", "lastTransitionTime": "2001-09-09T01:47:40Z"}], 1_000_000_060.0),
        ([{"type": "Ready", "status": "True", "lastTransitionTime": "2001-09-09T01:48:40Z"}], 1_000_000_120.0),
    ],
)
def test_since_when_a_pod_is_ready_or_not(conditions: list[Object], since: float) -> None:
    metadata = {"name": "p", "uid": "u", "creationTimestamp": "2001-09-09T01:46:40Z"}
    assert pod_from({"metadata": metadata, "status": {"conditions": conditions}}).changed_at == since


def test_the_mark_of_a_scale_in_is_read() -> None:
    metadata = {"name": "p", "uid": "u", "annotations": {contract.ANNOTATION_RETIRING: "{}"}}
    assert pod_from({"metadata": metadata}).retiring == "{}"


def test_ready_pod() -> None:
    pod = pod_from(pod_object({"state": {"running": {}}}, [{"type": "Ready", "status": "True"}]))
    assert (pod.ready, pod.running, pod.ip, pod.template_hash) == (True, True, "10.0.0.9", "h")
    assert pod.failure is None


@pytest.mark.parametrize(
    ("case", "container", "reason", "words"),
    [
        ("just ended", {"state": ended(TOLD)}, "InvalidLayout", "4 query heads do not divide over 3 ranks"),
        (
            "waits to be restarted",
            {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended(TOLD)},
            "InvalidLayout",
            "4 query heads",
        ),
        ("loads again", {"state": {"running": {}}, "lastState": ended(TOLD)}, "InvalidLayout", "4 query heads"),
        ("killed for memory", {"state": ended("", 137, reason="OOMKilled")}, "OutOfMemory", "limits.memory"),
        ("a crash", {"state": ended("Traceback\n  boom", 1)}, "ContainerExited", "exit code 1: Traceback boom"),
        ("no words at all", {"state": ended("", 139)}, "ContainerExited", "exit code 139; see the pod's log"),
        ("JSON of somebody else", {"state": ended('{"error": 1}', 1)}, "ContainerExited", '{"error": 1}'),
        ("a list", {"state": ended("[1]", 1)}, "ContainerExited", "[1]"),
    ],
)
def test_failure(case: str, container: Object, reason: str, words: str) -> None:
    failure = pod_from(pod_object(container)).failure
    assert failure is not None, case
    assert failure.reason == reason
    assert words in failure.message


def test_a_pod_that_came_back_has_no_failure() -> None:
    container = {"state": {"running": {}}, "lastState": ended(TOLD)}
    pod = pod_from(pod_object(container, [{"type": "Ready", "status": "True"}]))
    assert pod.failure is None
    assert pod.ended is not None, "the status still tells of it"
    assert pod.ended.reason == "InvalidLayout"


def test_a_bad_reason_cannot_break_the_status() -> None:
    told = json.dumps({"reason": "Bad reason!\n" + "x" * 500, "message": "m" * 5000})
    failure = pod_from(pod_object({"state": ended(told)})).failure
    assert failure is not None
    assert failure.reason.isalnum()
    assert (len(failure.reason), len(failure.message)) == (64, 900)


def test_a_certificate_that_a_pod_cannot_read_is_told_with_its_secret() -> None:
    """The pod alone knows only the path."""
    said = "no TLS: [Errno 2] No such file or directory: '/run/shift/tls/ca.crt'"
    for text, told in ((said, True), (said + "x" * 2000, True), ("no TLS: it is Monday", False)):
        obj = pod_object({"state": ended(json.dumps({"reason": "InvalidArgument", "message": text}), 1)})
        obj["spec"] = {"volumes": [{"name": "tmp"}, {"name": "serving-tls", "secret": {"secretName": "cert"}}]}
        failure = pod_from(obj).failure
        assert failure is not None
        assert ("/run/shift/tls is Secret cert of service.tls" in failure.message) is told
        assert ("ca.crt" in failure.message) is told
        assert len(failure.message) <= 900


def test_obstacles() -> None:
    image = {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
    obstacle = pod_from(pod_object(image)).obstacle
    assert obstacle is not None
    assert (obstacle.reason, obstacle.message) == ("ErrImagePull", "not found")
    starting = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    assert pod_from(pod_object(starting)).obstacle is None
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU is free"}
    obstacle = pod_from(pod_object(None, [unplaced])).obstacle
    assert obstacle is not None
    assert (obstacle.reason, obstacle.message) == ("Unschedulable", "no GPU is free")

    obstacle = pod_from(pod_object(None, [{**unplaced, "reason": "SchedulerError"}])).obstacle
    assert obstacle is not None
    assert obstacle.reason == "Unschedulable", "what the scheduler cannot do is told in its message"
    obstacle = pod_from(pod_object(None, [{**unplaced, "reason": "SchedulingGated"}])).obstacle
    assert obstacle is not None
    assert obstacle.reason == "SchedulingGated"


def condition(type_: str, status: str) -> Object:
    return {"type": type_, "status": status}


@pytest.mark.parametrize(
    ("conditions", "scheduled"),
    [([], None), ([condition("PodScheduled", "True")], True), ([condition("PodScheduled", "False")], False)],
)
def test_scheduled(conditions: list[Object], scheduled: bool | None) -> None:
    assert pod_from(pod_object(None, conditions)).scheduled is scheduled


@pytest.mark.parametrize(
    ("case", "scheduled", "phase", "draining"),
    [
        ("holds its place", "True", "Running", True),
        ("had none", "False", "Pending", False),
        ("gave it back", "True", "Succeeded", False),
        ("failed and is deleted", "True", "Failed", False),
    ],
)
def test_pods_on_their_way_out(case: str, scheduled: str, phase: str, draining: bool) -> None:
    obj = pod_object({}, [condition("PodScheduled", scheduled)], deletionTimestamp="2030-01-01T00:00:00Z")
    obj["status"]["phase"] = phase
    pod = pod_from(obj)
    assert (pod.deleting, pod.draining) == (True, draining), case


def test_an_evicted_pod_drains_nothing() -> None:
    obj = pod_object({}, [condition("PodScheduled", "True")])
    obj["status"]["phase"] = "Failed"
    assert (pod_from(obj).deleting, pod_from(obj).draining) == (True, False)


def test_when_the_container_started() -> None:
    assert pod_from(pod_object({"state": {"running": {"startedAt": "2030-01-01T00:00:00Z"}}})).started_at
    assert pod_from(pod_object({"state": {"running": {"startedAt": None}}})).started_at == ""
    assert pod_from(pod_object({"state": {"waiting": {}}})).started_at == ""
