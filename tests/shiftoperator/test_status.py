from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shiftoperator import status
from shiftoperator.errors import UserError
from shiftoperator.snapshot import Failure, GearState, Obstacle, SelfCheck, Snapshot
from shiftoperator.spec import Policy
from shiftprotos import contract

from .conftest import Make

Object = dict[str, Any]
NOW, LATER = "2030-01-01T00:00:00Z", "2030-01-01T00:01:00Z"
STEADY = status.Scaling(True, "Steady", "all well")
OUTCOME = status.Outcome(desired_replicas=1, template_hash="h", policy_generation=1, scaling=STEADY)
FAILURE = Failure("p1", "ModelNotFound", 2, "/models/x does not exist", NOW)


def said(snapshot: Snapshot, outcome: status.Outcome = OUTCOME) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status.conditions(snapshot, outcome, NOW)}


def test_every_condition_of_the_contract_is_there(make: Make) -> None:
    assert tuple(said(make.snapshot())) == contract.CONDITIONS


def test_healthy(make: Make) -> None:
    pod = make.pod()
    assert said(make.snapshot(pods=(pod,), states={pod.uid: make.state()})) == {
        "Ready": ("True", "AllPodsReady"),
        "Available": ("True", "PodsServe"),
        "Progressing": ("False", "Settled"),
        "ShiftVerified": ("True", "GearsAgree"),
        "PolicyInSync": ("True", "Applied"),
        "ScalingActive": ("True", "Steady"),
        "Scheduled": ("True", "PodsScheduled"),
        "ModelLoaded": ("True", "Loaded"),
        "SLOMet": ("Unknown", "NoTraffic"),
        "Degraded": ("False", "AsAsked"),
        "Paused": ("False", "NotSuspended"),
    }


@pytest.mark.parametrize(
    ("case", "pods", "desired", "ready", "available", "progressing"),
    [
        ("nothing yet", [], 1, ("False", "PodsStarting"), ("False", "NoPodReady"), ("True", "PodsStarting")),
        ("asked for none", [], 0, ("True", "ScaledToZero"), ("False", "ScaledToZero"), ("False", "Settled")),
        (
            "one of two",
            [{}, {"ready": False}],
            2,
            ("False", "PodsStarting"),
            ("True", "PodsServe"),
            ("True", "PodsStarting"),
        ),
        (
            "another template rolls out",
            [{"template_hash": "old"}, {"ready": False}],
            2,
            ("False", "RollingOut"),
            ("True", "PodsServe"),
            ("True", "RollingOut"),
        ),
        ("one too many", [{}, {}], 1, ("True", "AllPodsReady"), ("True", "PodsServe"), ("True", "PodsStopping")),
        (
            "one leaves",
            [{}, {"deleting": True}],
            1,
            ("True", "AllPodsReady"),
            ("True", "PodsServe"),
            ("True", "PodsStopping"),
        ),
        (
            "failed",
            [{"ready": False, "ended": FAILURE}],
            1,
            ("False", "ModelNotFound"),
            ("False", "NoPodReady"),
            ("False", "ModelNotFound"),
        ),
        (
            "no node",
            [{"ready": False, "obstacle": Obstacle("Unschedulable", "no GPU")}],
            1,
            ("False", "Unschedulable"),
            ("False", "NoPodReady"),
            ("False", "Unschedulable"),
        ),
    ],
)
def test_pods_decide(
    make: Make,
    case: str,
    pods: list[Object],
    desired: int,
    ready: tuple[str, str],
    available: tuple[str, str],
    progressing: tuple[str, str],
) -> None:
    made = tuple(make.pod(f"p{n}", **changed) for n, changed in enumerate(pods))
    found = said(make.snapshot(pods=made), replace(OUTCOME, desired_replicas=desired))
    assert (found["Ready"], found["Available"], found["Progressing"]) == (ready, available, progressing), case


def test_the_runtimes_sentence_reaches_ready_and_last_failure(make: Make) -> None:
    snapshot = make.snapshot(pods=(make.pod(ready=False, ended=FAILURE),))
    built = status.build(snapshot, OUTCOME, [], NOW)
    ready = built["conditions"][0]
    assert ready["message"] == "pod p1: /models/x does not exist"
    assert built["lastFailure"] == {
        "pod": "p1",
        "reason": "ModelNotFound",
        "exitCode": 2,
        "message": "/models/x does not exist",
        "time": NOW,
    }


def test_pods_that_cannot_be_created(make: Make) -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    deployment = {("Deployment", "gemma"): {"status": {"conditions": [refused]}}}
    assert said(make.snapshot(children=deployment))["Ready"] == ("False", "FailedCreate")


def test_a_refused_spec(make: Make) -> None:
    outcome = replace(OUTCOME, error=UserError("NameConflict", "Service gemma exists"))
    found = said(make.snapshot(), outcome)
    assert (found["Ready"], found["Progressing"]) == (("False", "NameConflict"), ("False", "NameConflict"))


def test_shift_verified_needs_every_ready_pod(make: Make) -> None:
    one, two = make.pod("p1"), make.pod("p2")
    states = {one.uid: make.state(), two.uid: make.state(self_check=SelfCheck(False, "sp2 differs by 0.3"))}
    assert said(make.snapshot(pods=(one, two), states=states))["ShiftVerified"] == ("False", "SelfCheckFailed")
    states = {one.uid: make.state()}
    assert said(make.snapshot(pods=(one, two), states=states))["ShiftVerified"] == ("Unknown", "NotReported")


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        ({"ended": replace(FAILURE, reason=contract.REASON_SELF_CHECK_FAILED)}, ("False", "SelfCheckFailed")),
        ({"ended": FAILURE}, ("True", "GearsAgree")),
        (
            {"ended": replace(FAILURE, reason=contract.REASON_SELF_CHECK_FAILED), "deleting": True},
            ("True", "GearsAgree"),
        ),
    ],
)
def test_a_pod_that_ended_in_its_self_check_is_told(make: Make, failed: Object, expected: tuple[str, str]) -> None:
    one, two = make.pod("p1"), make.pod("p2", ready=False, **failed)
    snapshot = make.snapshot(pods=(one, two), states={one.uid: make.state()})
    assert said(snapshot)["ShiftVerified"] == expected
    conditions = {c["type"]: c for c in status.conditions(snapshot, OUTCOME, NOW)}
    if expected[0] == "False":
        assert conditions["ShiftVerified"]["message"] == f"pod p2: {FAILURE.message}"


def test_policy_in_sync_needs_every_ready_pod(make: Make) -> None:
    one, two, starting = make.pod("p1"), make.pod("p2"), make.pod("p3", ready=False)
    outcome = replace(OUTCOME, policy_generation=5)
    states = {one.uid: make.state(generation_applied=5), two.uid: make.state(generation_applied=4)}
    pods = (one, two, starting)
    assert said(make.snapshot(pods=pods, states=states), outcome)["PolicyInSync"] == ("False", "Applying")
    states[two.uid] = make.state(generation_applied=5)
    assert said(make.snapshot(pods=pods, states=states), outcome)["PolicyInSync"] == ("True", "Applied")
    assert said(make.snapshot(), outcome)["PolicyInSync"] == ("Unknown", "NoPodReady")


def test_nothing_is_written_at_rest(make: Make) -> None:
    pod = make.pod()
    states = {pod.uid: make.state()}
    first = status.build(make.snapshot(pods=(pod,), states=states), OUTCOME, [], NOW)
    resource = make.resource(status=first)
    busy = make.state(
        read_at=200.0, gears=(GearState("tp2", 1, 2, 601, 0, 400.0), GearState("sp2", 2, 1, 400, 0, 1000.0))
    )
    again = status.build(make.snapshot(resource, (pod,), {pod.uid: busy}), OUTCOME, [], LATER)
    assert status.patch(first, again) == {}


def test_transition_times_follow_the_status_only(make: Make) -> None:
    first = status.build(make.snapshot(), OUTCOME, [], NOW)
    failed = make.snapshot(make.resource(status=first), (make.pod(ready=False, ended=FAILURE),))
    second = status.build(failed, OUTCOME, [], LATER)
    times = {c["type"]: c["lastTransitionTime"] for c in second["conditions"]}
    assert times["Ready"] == NOW, "False for another reason is still False"
    assert times["Progressing"] == LATER


def test_what_people_hear_of(make: Make) -> None:
    first = status.build(make.snapshot(), OUTCOME, [], NOW)
    pod = make.pod()
    ready = make.snapshot(make.resource(status=first), (pod,), {pod.uid: make.state()})
    second = status.build(ready, OUTCOME, [], LATER)
    heard = {(t.type, t.status, t.bad) for t in status.transitions(first, second)}
    assert heard == {
        ("Ready", "True", False),
        ("Available", "True", False),
        ("Progressing", "False", False),
        ("ShiftVerified", "True", False),
        ("PolicyInSync", "True", False),
    }
    assert status.transitions(second, second) == ()


def test_the_status_is_bounded(make: Make) -> None:
    pods = tuple(make.pod(f"p{n:02}") for n in range(40))
    decisions = [{"reason": str(n)} for n in range(30)]
    built = status.build(make.snapshot(pods=pods), OUTCOME, decisions, NOW)
    assert (len(built["pods"]), len(built["decisions"])) == (16, 10)
    assert built["decisions"][0] == {"reason": "0"}


def test_gears_are_coarse(make: Make) -> None:
    pod = make.pod()
    state = make.state(gears=(GearState("tp2", 1, 2, 613, 0), GearState("sp2", 2, 1, 387, 0)))
    built = status.build(make.snapshot(pods=(pod,), states={pod.uid: state}), OUTCOME, [], NOW)
    assert built["pods"][0]["gears"] == {"tp2": 60, "sp2": 40}
    assert built["gear"] == "tp2 60%, sp2 40%"


def test_a_raised_generation_takes_the_old_verdict_back() -> None:
    in_sync = {"type": "PolicyInSync", "status": "True", "reason": "Applied", "message": "", "lastTransitionTime": NOW}
    changed = status.raised_generation({"conditions": [in_sync]}, Policy("Latency"), 5, LATER)
    assert (changed["policyGeneration"], changed["policy"]) == (5, {"mode": "Latency", "thresholdTokens": None})
    [condition] = changed["conditions"]
    assert (condition["status"], condition["lastTransitionTime"]) == ("False", LATER)
    assert "conditions" not in status.raised_generation({}, Policy(), 1, NOW)
