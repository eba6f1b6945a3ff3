"""One table per condition: what is there, and what the condition says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shiftoperator import status
from shiftoperator.errors import UserError
from shiftoperator.snapshot import Failure, Load, Obstacle, Phase
from shiftprotos import contract

from .conftest import Make

Object = dict[str, Any]
NOW = "2030-01-01T01:00:00Z"
OUTCOME = status.Outcome(1, "h", 1, status.Scaling(True, "Steady", "all well"))
CRASHED = Failure("p2", "RankFailed", 1, "rank 1 died", NOW)
NO_NODE: Object = {
    "ready": False, "running": False, "scheduled": False, "obstacle": Obstacle("Unschedulable", "0/3 nodes: no GPU"),
}  # fmt: skip
GATED: Object = {**NO_NODE, "obstacle": Obstacle("SchedulingGated", "a gate")}
NEW: Object = {"ready": False, "running": False, "scheduled": None}
PLACED: Object = {"ready": False, "running": False}
RUNS: Object = {"ready": False}
LEAVES: Object = {"deleting": True, "draining": True}
ENDED: Object = {"deleting": True}
QUOTA = {("Deployment", "gemma"): {"status": {"conditions": [
    {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
]}}}  # fmt: skip


def was(type_: str, status_: str, reason: str, since: str = NOW, **more: Any) -> Object:
    told = {"type": type_, "status": status_, "reason": reason, "message": "as before", "lastTransitionTime": since}
    return {"conditions": [{**told, "observedGeneration": 3}], **more}


class Scene:
    """Pods p1, p2, …; those that serve, and those whose state is given, have answered."""

    def __init__(self, make: Make, pods: list[Object], before: Object | None = None, **spec: Any) -> None:
        self.make = make
        self.pods = tuple(make.pod(f"p{n}", **changed) for n, changed in enumerate(pods, start=1))
        self.states = {pod.uid: make.state() for pod in self.pods if pod.ready}
        self.resource = make.resource(before, **spec)
        self.children: dict[tuple[str, str], Object] = {}

    def says(self, type_: str, outcome: status.Outcome = OUTCOME) -> tuple[str, str]:
        found = self.condition(type_, outcome)
        return found["status"], found["reason"]

    def condition(self, type_: str, outcome: status.Outcome = OUTCOME) -> Object:
        snapshot = self.make.snapshot(self.resource, self.pods, self.states, self.children)
        return next(c for c in status.conditions(snapshot, outcome, NOW) if c["type"] == type_)


@pytest.mark.parametrize(
    ("case", "pods", "expected"),
    [
        ("no pod", [], ("Unknown", "NoPods")),
        ("created a moment ago", [NEW], ("Unknown", "Scheduling")),
        ("placed", [{}], ("True", "PodsScheduled")),
        ("one more, not looked at yet", [{}, NEW], ("True", "PodsScheduled")),
        ("no node", [{}, NO_NODE], ("False", "Unschedulable")),
        ("a gate", [{}, GATED], ("False", "SchedulingGated")),
        ("the place is not free yet", [LEAVES, NO_NODE], ("False", "WaitingForDrain")),
        ("two places for two pods", [LEAVES, LEAVES, NO_NODE, NO_NODE], ("False", "WaitingForDrain")),
        ("one place for two pods", [LEAVES, NO_NODE, NO_NODE], ("False", "Unschedulable")),
        ("a pod that ended holds no place", [ENDED, NO_NODE], ("False", "Unschedulable")),
        ("a gate does not wait for a place", [LEAVES, GATED], ("False", "SchedulingGated")),
    ],
)
def test_scheduled(make: Make, case: str, pods: list[Object], expected: tuple[str, str]) -> None:
    assert Scene(make, pods).says("Scheduled") == expected, case


def test_a_quota_is_told(make: Make) -> None:
    scene = Scene(make, [{}])
    scene.children = QUOTA
    assert scene.says("Scheduled") == ("False", "FailedCreate")
    assert scene.says("Scheduled", replace(OUTCOME, desired_replicas=0)) == ("True", "PodsScheduled")


def test_a_pod_that_waits_for_a_drain_is_no_failure(make: Make) -> None:
    scene = Scene(make, [LEAVES, NO_NODE])
    assert scene.says("Ready") == ("False", "WaitingForDrain")
    assert scene.says("Progressing") == ("True", "WaitingForDrain")
    snapshot = make.snapshot(scene.resource, scene.pods)
    [message] = {c["message"] for c in status.conditions(snapshot, OUTCOME, NOW) if c["type"] == "Scheduled"}
    assert message == "pod p2 waits for the place of pod p1, which ends its requests"


def phases(*names: str) -> tuple[Phase, ...]:
    return tuple(Phase(name, 1.0, done=name != names[-1]) for name in names)


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ((), ("False", "Starting")),
        (("fetch",), ("False", "Fetching")),
        (("fetch", "ranks"), ("False", "StartingRanks")),
        (("ranks", "verify"), ("False", "Verifying")),
        (("ranks", "open"), ("False", "Opening")),
        (("ranks", "open", "load"), ("False", "Loading")),
        (("ranks", "open", "load", "kv"), ("True", "SizingCache")),
        (("load", "kv", "warm"), ("True", "WarmingUp")),
        (("load", "kv", "warm", "calibrate"), ("True", "Calibrating")),
        (("load", "kv", "warm", "calibrate", "self-check"), ("True", "SelfChecking")),
        (("load", "a phase of a later version"), ("False", "Loading")),
    ],
)
def test_model_loaded_follows_the_phases(make: Make, reached: tuple[str, ...], expected: tuple[str, str]) -> None:
    scene = Scene(make, [{}, RUNS])
    scene.states["uid-p2"] = make.state(ready=False, phases=phases(*reached) if reached else ())
    assert scene.says("ModelLoaded") == expected


@pytest.mark.parametrize(
    ("case", "pods", "expected"),
    [
        ("no pod", [], ("Unknown", "NoPods")),
        ("all serve", [{}, {}], ("True", "Loaded")),
        ("no container yet", [{}, PLACED], ("False", "ContainerStarting")),
        ("silent", [{}, RUNS], ("Unknown", "NotReported")),
        ("failed", [{}, {"ready": False, "ended": CRASHED}], ("False", "RankFailed")),
        ("came back", [{"ended": CRASHED}], ("True", "Loaded")),
        (
            "failed with a reason of a later version",
            [{"ready": False, "ended": replace(CRASHED, reason="SunSpots")}],
            ("False", "RuntimeFailed"),
        ),
        ("leaves", [{}, LEAVES], ("True", "Loaded")),
    ],
)
def test_model_loaded(make: Make, case: str, pods: list[Object], expected: tuple[str, str]) -> None:
    assert Scene(make, pods).says("ModelLoaded") == expected, case


def test_the_least_advanced_pod_speaks(make: Make) -> None:
    scene = Scene(make, [RUNS, RUNS])
    scene.states = {
        "uid-p1": make.state(phases=phases("load", "kv")),
        "uid-p2": make.state(phases=phases("fetch")),
    }
    assert scene.says("ModelLoaded") == ("False", "Fetching")


LONG_AGO, LATELY = "2030-01-01T00:00:00Z", "2030-01-01T00:59:30Z"
MET, MISSED = was("SLOMet", "True", "TargetsMet", LATELY), was("SLOMet", "False", "TtftMissed", LATELY)


@pytest.mark.parametrize(
    ("case", "slo", "load", "before", "expected"),
    [
        ("no target", {}, Load(ttft_seconds={95: 9}), None, ("Unknown", "NoTarget")),
        ("no traffic", {"ttftMs": 2000}, Load(), None, ("Unknown", "NoTraffic")),
        ("traffic of another kind", {"tpotMs": 50}, Load(ttft_seconds={95: 1}), None, ("Unknown", "NoTraffic")),
        ("met", {"ttftMs": 2000}, Load(ttft_seconds={95: 2.0}), None, ("True", "TargetsMet")),
        ("first token late", {"ttftMs": 2000}, Load(ttft_seconds={95: 2.01}), None, ("False", "TtftMissed")),
        ("late already while it waits", {"ttftMs": 2000}, Load(oldest_wait_seconds=3), None, ("False", "TtftMissed")),
        ("further tokens late", {"tpotMs": 50}, Load(tpot_seconds={95: 0.06}), None, ("False", "TpotMissed")),
        ("missed at once", {"ttftMs": 2000}, Load(ttft_seconds={95: 2.01}), MET, ("False", "TtftMissed")),
        ("just under the target", {"ttftMs": 2000}, Load(ttft_seconds={95: 1.9}), MISSED, ("False", "TtftMissed")),
        ("room, but missed lately", {"ttftMs": 2000}, Load(ttft_seconds={95: 1.0}), MISSED, ("False", "TtftMissed")),
        (
            "room for a while",
            {"ttftMs": 2000},
            Load(ttft_seconds={95: 1.0}),
            was("SLOMet", "False", "TtftMissed", LONG_AGO),
            ("True", "TargetsMet"),
        ),
        (
            "just under the target for a while",
            {"ttftMs": 2000},
            Load(ttft_seconds={95: 1.9}),
            was("SLOMet", "False", "TtftMissed", LONG_AGO),
            ("False", "TtftMissed"),
        ),
        ("a pause", {"ttftMs": 2000}, Load(), MET, ("True", "TargetsMet")),
        (
            "a long pause",
            {"ttftMs": 2000},
            Load(),
            was("SLOMet", "True", "TargetsMet", LONG_AGO),
            ("Unknown", "NoTraffic"),
        ),
        (
            "missed, then silence",
            {"ttftMs": 2000},
            Load(),
            was("SLOMet", "False", "TtftMissed", LONG_AGO),
            ("Unknown", "NoTraffic"),
        ),
    ],
)
def test_slo_met(
    make: Make, case: str, slo: Object, load: Load, before: Object | None, expected: tuple[str, str]
) -> None:
    scene = Scene(make, [{}, {}], before, slo=slo)
    scene.states["uid-p2"] = make.state(load=load)
    assert scene.says("SLOMet") == expected, case


def test_one_miss_does_not_tighten_the_other_target(make: Make) -> None:
    """The reason changed in the second pass over the same figures."""
    scene = Scene(make, [{}], was("SLOMet", "False", "TpotMissed", LATELY), slo={"ttftMs": 2000, "tpotMs": 50})
    scene.states["uid-p1"] = make.state(load=Load(ttft_seconds={95: 1.9}, tpot_seconds={95: 0.06}))
    assert scene.says("SLOMet") == ("False", "TpotMissed")


@pytest.mark.parametrize(
    ("percentile", "expected"),
    [(50, ("True", "TargetsMet")), (95, ("True", "TargetsMet")), (99, ("False", "TtftMissed"))],
)
def test_targets_hold_at_the_percentile_asked_for(make: Make, percentile: int, expected: tuple[str, str]) -> None:
    scene = Scene(make, [{}], slo={"ttftMs": 2000, "percentile": percentile})
    scene.states["uid-p1"] = make.state(load=Load(ttft_seconds={50: 0.5, 90: 1.0, 95: 1.5, 99: 3.0}))
    assert scene.says("SLOMet") == expected
    assert ("the 99th percentile" in scene.condition("SLOMet")["message"]) == (percentile == 99)


def test_a_runtime_of_the_version_before_is_held_to_its_only_percentile(make: Make) -> None:
    scene = Scene(make, [{}], slo={"tpotMs": 50, "percentile": 99})
    scene.states["uid-p1"] = make.state(load=Load(tpot_seconds={50: 0.0, 90: 0.0, 95: 0.06, 99: 0.0}))
    assert scene.says("SLOMet") == ("False", "TpotMissed")


def test_a_pod_that_is_emptied_is_not_taken_for_one_that_starts(make: Make) -> None:
    scene = Scene(make, [{}, {"ready": False, "retiring": "{}"}])
    scene.states["uid-p2"] = make.state(phases=phases("fetch"), draining=True)
    assert scene.says("ModelLoaded") == ("True", "Loaded")


def test_a_new_target_forgets_the_old_verdict(make: Make) -> None:
    scene = Scene(make, [{}], MISSED, slo={"ttftMs": 2000})
    scene.states["uid-p1"] = make.state(load=Load(ttft_seconds={95: 1.9}))
    assert scene.says("SLOMet") == ("False", "TtftMissed")
    scene.resource["metadata"]["generation"] += 1
    assert scene.says("SLOMet") == ("True", "TargetsMet")


OUT_OF_SYNC = was("PolicyInSync", "False", "Applying", LONG_AGO)


@pytest.mark.parametrize(
    ("case", "pods", "wanted", "expected"),
    [
        ("none asked for", [{}], 0, ("False", "AsAsked")),
        ("all serve", [{}, {}], 2, ("False", "AsAsked")),
        ("one is on its way", [{}, RUNS], 2, ("False", "AsAsked")),
        ("nothing serves", [RUNS, RUNS], 2, ("Unknown", "NoPodReady")),
        ("one crashes", [{}, {"ready": False, "ended": CRASHED}], 2, ("True", "PodsFailing")),
        ("a surplus pod crashes", [{}, {"ready": False, "ended": CRASHED}], 1, ("False", "AsAsked")),
        ("one finds no node", [{}, NO_NODE], 2, ("True", "PodsBlocked")),
        ("one waits for a drain", [{}, LEAVES, NO_NODE], 2, ("False", "AsAsked")),
    ],
)
def test_degraded_by_pods(make: Make, case: str, pods: list[Object], wanted: int, expected: tuple[str, str]) -> None:
    assert Scene(make, pods).says("Degraded", replace(OUTCOME, desired_replicas=wanted)) == expected, case


@pytest.mark.parametrize(
    ("case", "since", "silent", "expected"),
    [
        ("a push on its way", LATELY, False, ("False", "AsAsked")),
        ("does not follow", LONG_AGO, False, ("True", "PolicyLate")),
        ("does not answer", LONG_AGO, True, ("True", "PodSilent")),
    ],
)
def test_degraded_by_policy(make: Make, case: str, since: str, silent: bool, expected: tuple[str, str]) -> None:
    scene = Scene(make, [{}, {}], was("PolicyInSync", "False", "Applying", since))
    if silent:
        del scene.states["uid-p2"]
    else:
        scene.states["uid-p2"] = make.state(generation_applied=0)
    assert scene.says("Degraded", replace(OUTCOME, desired_replicas=2)) == expected, case


def test_degraded_by_a_refused_spec(make: Make) -> None:
    outcome = replace(OUTCOME, error=UserError("InvalidSpec", "gpus 0"))
    assert Scene(make, [{}]).says("Degraded", outcome) == ("True", "SpecRefused")
    assert Scene(make, []).says("Degraded", outcome) == ("Unknown", "NoPodReady")


@pytest.mark.parametrize(
    ("suspend", "pods", "paused", "ready", "available", "progressing"),
    [
        (False, [{}], "NotSuspended", "AllPodsReady", "PodsServe", "Settled"),
        (True, [], "Suspended", "Suspended", "Suspended", "Settled"),
        (True, [LEAVES], "Suspending", "Suspended", "Suspended", "PodsStopping"),
        (True, [{}], "Suspending", "Suspended", "PodsServe", "PodsStopping"),
    ],
)
def test_suspended(
    make: Make, suspend: bool, pods: list[Object], paused: str, ready: str, available: str, progressing: str
) -> None:
    scene = Scene(make, pods, suspend=suspend)
    outcome = replace(OUTCOME, desired_replicas=0 if suspend else 1)
    found = [scene.says(type_, outcome)[1] for type_ in ("Paused", "Ready", "Available", "Progressing")]
    assert found == [paused, ready, available, progressing]
    assert scene.says("Paused", outcome)[0] == str(suspend)


def test_ready_is_not_lost_while_a_pod_is_added(make: Make) -> None:
    """Scaling out used to say Ready=False, PodsStarting, though all that had served went on to serve."""
    two = replace(OUTCOME, desired_replicas=2)
    for before in (("True", "AllPodsReady"), ("True", "ScalingOut"), ("False", "Unschedulable")):
        grows = Scene(make, [{}, RUNS], was("Ready", *before, settledReplicas=1))
        assert grows.says("Ready", two) == ("True", "ScalingOut")
        assert grows.says("Progressing", two) == ("True", "ScalingOut")


@pytest.mark.parametrize(
    ("case", "pods", "before", "expected"),
    [
        ("the first start", [{}, RUNS], {}, "PodsStarting"),
        ("it never served", [{}, RUNS], was("Ready", "False", "PodsStarting", settledReplicas=0), "PodsStarting"),
        (
            "one that served is gone",
            [RUNS, {}],
            was("Ready", "True", "AllPodsReady", settledReplicas=2),
            "PodsStarting",
        ),
        (
            "the new one fails",
            [{}, {"ready": False, "ended": CRASHED}],
            was("Ready", "True", "ScalingOut", settledReplicas=1),
            "RankFailed",
        ),
        ("the new one has no node", [{}, NO_NODE], was("Ready", "True", "x", settledReplicas=1), "Unschedulable"),
        (
            "another spec rolls out",
            [{"template_hash": "old"}, RUNS],
            was("Ready", "True", "AllPodsReady", settledReplicas=1),
            "RollingOut",
        ),
        (
            "as many serve, but one of them is of another spec",
            [{}, {"template_hash": "old"}],
            was("Ready", "True", "ScalingOut", settledReplicas=1),
            "RollingOut",
        ),
    ],
)
def test_ready_is_lost_all_the_same(make: Make, case: str, pods: list[Object], before: Object, expected: str) -> None:
    assert Scene(make, pods, before).says("Ready", replace(OUTCOME, desired_replicas=2)) == ("False", expected), case


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Obstacle("ErrImagePull", "not found"), "ImagePullBackOff"),
        (Obstacle("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: not found'), "ImagePullBackOff"),
        (Obstacle("CreateContainerConfigError", "not found"), "CreateContainerConfigError"),
        (Obstacle("MoonPhase", "wrong"), "ContainerWaiting"),
    ],
)
def test_what_a_kubelet_says(make: Make, said: Obstacle, expected: str) -> None:
    """A pull that fails is told by turns in two ways: the status must not follow."""
    scene = Scene(make, [{"ready": False, "running": False, "obstacle": said}])
    assert scene.says("Ready") == ("False", expected)
    snapshot = make.snapshot(scene.resource, scene.pods)
    message = status.conditions(snapshot, OUTCOME, NOW)[0]["message"]
    assert message == ("pod p1: MoonPhase: wrong" if expected == "ContainerWaiting" else "pod p1: not found")


def test_a_condition_of_every_type_is_decided() -> None:
    assert set(status.reasons.OF_CONDITION) == set(contract.CONDITIONS)
