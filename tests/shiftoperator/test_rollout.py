"""Which revision runs: every rule as a table, on what a pass sees."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator import manifests, rollout
from shiftoperator import spec as specs
from shiftoperator.snapshot import Failure, Obstacle, Pod, SelfCheck, Snapshot

from .conftest import Make

Object = dict[str, Any]
NOW = 10_000.0
STAMP = "2026-11-21T20:00:00Z"
GOOD = "good"


def failed(reason: str) -> Failure:
    return Failure("p", reason, 1, "it ended", STAMP)


class Scene:
    """Two pods are asked for; the good revision served, and the spec asks for another one."""

    def __init__(self, make: Make, replicas: int = 2, **rollout_spec: Any) -> None:
        self.make = make
        self.resource = make.resource({"rollout": {"goodRevision": GOOD}}, replicas=replicas, rollout=rollout_spec)
        self.resource["spec"]["autoscaling"] = {"mode": "Disabled"}
        self.target = manifests.template_hash(self.resource["spec"])
        self.pods: list[Pod] = []
        self.states: dict[str, Any] = {}
        self.deployment: Object = {
            "metadata": {"generation": 2},
            "spec": {"template": {"metadata": {"annotations": {"shiftparallel.dev/template-hash": self.target}}}},
            "status": {"observedGeneration": 2, "conditions": []},
        }
        self.stored = [GOOD, self.target]
        self.templates: dict[str, Object] = {}

    def old(self, **changed: Any) -> Scene:
        return self._add(template_hash=GOOD, changed_at=NOW - 5000, **changed)

    def new(self, seconds: float = 5.0, **changed: Any) -> Scene:
        return self._add(template_hash=self.target, changed_at=NOW - seconds, **changed)

    def _add(self, **changed: Any) -> Scene:
        self.pods.append(self.make.pod(f"p{len(self.pods) + 1}", **changed))
        return self

    @property
    def snapshot(self) -> Snapshot:
        revisions = [
            manifests.controller_revision(self.resource, hash_, self.templates.get(hash_, {}), 1)
            for hash_ in self.stored
        ]
        children: dict[tuple[str, str], Object] = {("ControllerRevision", r["metadata"]["name"]): r for r in revisions}
        children["Deployment", "gemma"] = self.deployment
        return self.make.snapshot(self.resource, tuple(self.pods), self.states, children)

    def judged(self) -> rollout.Revisions:
        """Pods have been held up since they changed last."""
        held = {what: at for pod in self.pods
                for what in rollout.seen(self.make.snapshot(pods=(pod,)), rollout.Seen(), 0.0).held
                if (at := pod.changed_at) is not None}  # fmt: skip
        return rollout.judge(self.snapshot, specs.parse(self.resource["spec"]), NOW, STAMP, rollout.Seen(held))

    @property
    def verdict(self) -> str | None:
        rejected = self.judged().rejected
        return None if rejected is None else rejected.reason


DOWN: Object = {"ready": False, "running": False}
LOADS: Object = {"ready": False}
NO_NODE: Object = {**DOWN, "scheduled": False, "obstacle": Obstacle("Unschedulable", "0/3 nodes")}
GATED: Object = {**DOWN, "scheduled": False, "obstacle": Obstacle("SchedulingGated", "held")}


def held(reason: str) -> Object:
    return {**DOWN, "obstacle": Obstacle(reason, "said the kubelet")}


@pytest.mark.parametrize(
    ("seconds", "pod", "verdict"),
    [
        # A container that ended.
        (5, {**DOWN, "ended": failed("ModelNotFound")}, "ModelNotFound"),
        (5, {**DOWN, "ended": failed("SelfCheckFailed")}, "SelfCheckFailed"),
        (5, {**LOADS, "ended": failed("OutOfMemory"), "restarts": 1}, "OutOfMemory"),
        (5, {**DOWN, "ended": failed("RankFailed")}, None),
        (5, {**LOADS, "ended": failed("RankFailed"), "restarts": 1}, None),
        (5, {**DOWN, "ended": failed("RankFailed"), "restarts": 1}, "RankFailed"),
        (5, {**DOWN, "ended": failed("NewerThanWeAre"), "restarts": 1}, "RuntimeFailed"),
        (5, {**DOWN, "ended": failed("ModelNotFound"), "retiring": "{}"}, None),
        # A container that never ran.
        (29, held("ImagePullBackOff"), None),
        (30, held("ImagePullBackOff"), "ImagePullBackOff"),
        (30, held("ErrImagePull"), "ImagePullBackOff"),
        (30, held("CreateContainerConfigError"), "CreateContainerConfigError"),
        (30, held("SomethingNew"), None),
        # No node: while another pod serves, the deadline counts, and what that one may drain.
        (600, NO_NODE, None),
        (1800 + 59, NO_NODE, None),
        (1800 + 60, NO_NODE, "ProgressDeadlineExceeded"),
        (9000, GATED, None),
        # Never ready.
        (1799, LOADS, None),
        (1800, LOADS, "ProgressDeadlineExceeded"),
        # Ready, and fine so far.
        (5, {}, None),
    ],
)
def test_what_makes_a_revision_a_bad_one_while_another_pod_serves(
    make: Make, seconds: float, pod: Object, verdict: str | None
) -> None:
    scene = Scene(make).old().new(seconds, **pod)
    assert scene.verdict == verdict
    decided = scene.judged()
    assert decided.running == (GOOD if verdict else scene.target)
    if decided.rejected is not None:
        assert (decided.rejected.revision, decided.rejected.good) == (scene.target, GOOD)
        assert decided.rejected.message.startswith("pod p2")


@pytest.mark.parametrize(
    ("seconds", "pod", "verdict"),
    [
        (5, {**DOWN, "ended": failed("RankFailed")}, "RankFailed"),
        (5, {**LOADS, "ended": failed("ContainerExited"), "restarts": 1}, "ContainerExited"),
        (119, NO_NODE, None),
        (120, NO_NODE, "Unschedulable"),
        (120, GATED, None),
        (1799, LOADS, None),
        (1800, LOADS, "ProgressDeadlineExceeded"),
    ],
)
def test_while_nobody_serves_it_goes_faster(make: Make, seconds: float, pod: Object, verdict: str | None) -> None:
    assert Scene(make, replicas=1).new(seconds, **pod).verdict == verdict


def test_a_revision_without_a_node_gets_the_time_of_a_start(make: Make) -> None:
    scene = Scene(make, replicas=1).new(359, **NO_NODE)
    scene.resource["status"]["slowestStart"] = {"pod": "p0", "seconds": 300}
    assert scene.verdict is None
    scene.pods.clear()
    assert scene.new(360, **NO_NODE).verdict == "Unschedulable"


def test_pods_that_wait_for_a_drain_are_not_counted_before_its_end(make: Make) -> None:
    scene = Scene(make, replicas=1, drainSeconds=600).new(600, **NO_NODE)
    scene.old(deleting=True, draining=True, ready=False)
    assert scene.verdict is None


def test_lack_of_room_for_more_pods_of_a_revision_that_works_is_no_fault_of_it(make: Make) -> None:
    assert Scene(make).new(50.0).new(9000, **NO_NODE).verdict is None


def test_a_ready_pod_whose_gears_disagree(make: Make) -> None:
    scene = Scene(make).old().new(50.0)
    scene.states["uid-p2"] = make.state(self_check=SelfCheck(False, "tp2 and sp2 differ"))
    assert scene.verdict == "SelfCheckFailed"
    scene = Scene(make).new(50.0).new(50.0)
    scene.states["uid-p2"] = make.state(self_check=SelfCheck(False, "tp2 and sp2 differ"))
    assert scene.judged().good == GOOD, "serving is not enough"


def conditions(*said: tuple[str, str, str]) -> list[Object]:
    return [{"type": type_, "status": status, "reason": reason, "message": "quota"} for type_, status, reason in said]


def test_no_pod_can_be_made(make: Make) -> None:
    late = conditions(("Progressing", "False", "ProgressDeadlineExceeded"), ("ReplicaFailure", "True", "FailedCreate"))
    scene = Scene(make).old()
    scene.deployment["status"]["conditions"] = late
    rejected = scene.judged().rejected
    assert rejected is not None
    assert (rejected.reason, rejected.message) == ("ProgressDeadlineExceeded", "quota")
    scene.deployment["metadata"]["generation"] = 3
    assert scene.verdict is None, "said of a template before"
    scene.deployment["metadata"]["generation"] = 2
    assert scene.new().verdict is None, "there is a pod to look at"


def test_a_deadline_that_passed_for_the_template_before_rejects_nothing(make: Make) -> None:
    """What its controller had said of the last template stood a moment beside the new one, which was rolled back."""
    scene = Scene(make).old()
    scene.deployment["status"]["conditions"] = conditions(("Progressing", "False", "ProgressDeadlineExceeded"))
    assert scene.verdict is None
    scene.deployment["status"]["conditions"] += conditions(("ReplicaFailure", "False", "Made"))
    assert scene.verdict is None


@pytest.mark.parametrize("change", [{"autoRollback": False}, {"paused": True}])
def test_who_wants_no_rollback_gets_none(make: Make, change: Object) -> None:
    assert Scene(make, **change).old().new(**DOWN, ended=failed("ModelNotFound")).verdict is None


def test_without_a_good_revision_there_is_nothing_to_go_back_to(make: Make) -> None:
    scene = Scene(make).new(**DOWN, ended=failed("ModelNotFound"))
    scene.resource["status"] = {}
    assert scene.verdict is None
    scene.resource["status"] = {"rollout": {"goodRevision": GOOD}}
    scene.stored.remove(GOOD)
    assert scene.verdict is None, "its template is gone"


@pytest.mark.parametrize(
    ("ages", "good"),
    [((10.0, 10.0), True), ((10.0, 9.0), False), ((10.0,), False), ((10.0, 10.0, 10.0), True)],
)
def test_a_revision_is_good_when_all_pods_have_served_for_a_while(
    make: Make, ages: tuple[float, ...], good: bool
) -> None:
    scene = Scene(make)
    for age in ages:
        scene.new(age)
    assert scene.judged().good == (scene.target if good else GOOD)
    assert scene.old().judged().good == GOOD, "one of the old revision is left"


@pytest.mark.parametrize(
    ("ready", "others", "good"),
    [
        # Its wait is counted from when pods that leave have gone, 60 s at most.
        ((50, 50, 50), [(119, NO_NODE)], False),
        ((50, 50, 50), [(120, NO_NODE)], True),
        ((50, 50, 50), [(120, GATED)], True),
        ((50, 9, 50), [(120, NO_NODE)], False),
        ((), [(9000, NO_NODE)] * 4, False),
        # Pods come all the time, or fail on one node, or a quota lets no fourth be made.
        ((1799, 50, 50), [(5, LOADS)], False),
        ((1800, 50, 50), [(5, LOADS)], True),
        ((1800, 9, 50), [(5, {**DOWN, "ended": failed("OutOfMemory")})], True),
        ((1799, 1799, 1799), [], False),
        ((1800, 50, 50), [], True),
    ],
)
def test_a_trial_ends_where_pods_are_missing_for_good(
    make: Make, ready: tuple[float, ...], others: list[tuple[float, Object]], good: bool
) -> None:
    """It went on while one pod had no node, or others came: a failure days later took back the whole service."""
    scene = Scene(make, replicas=4)
    for age in ready:
        scene.new(age)
    for seconds, pod in others:
        scene.new(seconds, **pod)
    assert scene.judged().good == (scene.target if good else GOOD)
    assert scene.old().judged().good == GOOD, "one of the old revision is left"


@pytest.mark.parametrize(
    ("served", "seconds", "pod", "good"),
    [(1799, 600, NO_NODE, False), (1800, 119, NO_NODE, False), (1800, 120, NO_NODE, True), (9000, 5, LOADS, False)],
)
def test_a_rollout_that_cannot_go_on_for_want_of_room_ends_its_trial_too(
    make: Make, served: float, seconds: float, pod: Object, good: bool
) -> None:
    """One that goes on slowly stays on trial."""
    scene = Scene(make, replicas=3).old().new(served).new(seconds, **pod)
    assert scene.judged().good == (scene.target if good else GOOD)


@pytest.mark.parametrize(("served", "good"), [(1799, False), (1800, True)])
def test_a_rollout_that_a_quota_stops_half_way_ends_its_trial_too(make: Make, served: float, good: bool) -> None:
    scene = Scene(make, replicas=3).old().new(served)
    scene.deployment["status"]["conditions"] = conditions(("ReplicaFailure", "True", "FailedCreate"))
    assert scene.judged().good == (scene.target if good else GOOD)


def test_a_pod_that_fails_after_it_served_counts_while_others_are_to_be_replaced(make: Make) -> None:
    """The first requests may end what the start did not."""
    served = {**DOWN, "ended": failed("RankFailed"), "restarts": 1}
    assert Scene(make).old().new(5, **served).verdict == "RankFailed"


def test_pods_that_fail_after_their_revision_was_good_roll_nothing_back(make: Make) -> None:
    scene = Scene(make).new(50.0).new(50.0, **DOWN, ended=failed("ModelNotFound"))
    scene.resource["status"]["rollout"]["goodRevision"] = scene.target
    assert scene.verdict is None


def rejecting(make: Make, tried: bool = True, **rollout_spec: Any) -> Scene:
    scene = Scene(make, **rollout_spec).old().old()
    rejected = {"revision": scene.target, "reason": "RankFailed", "message": "m", "time": STAMP, "tried": tried}
    scene.resource["status"]["rollout"]["rejected"] = rejected
    return scene


def test_a_rejection_lasts_until_the_spec_asks_for_another_revision(make: Make) -> None:
    scene = rejecting(make)
    for _ in range(2):
        decided = scene.judged()
        assert (decided.running, decided.good) == (GOOD, GOOD)
        assert not rollout.begins(scene.snapshot, decided), "nothing is checked again"
        assert not rollout.rolling(scene.snapshot)
        scene.resource["status"]["rollout"] = decided.as_status()
        scene.resource["spec"] |= {"replicas": 3, "shift": {"policy": "Latency"}}
    scene.resource["spec"]["engine"] = {"maxNumSeqs": 4}
    decided = scene.judged()
    assert decided.rejected is None
    assert decided.running not in (GOOD, scene.target)


def test_a_restart_tries_the_same_again(make: Make) -> None:
    scene = rejecting(make)
    scene.resource["spec"]["rollout"] = {"restartedAt": STAMP}
    assert scene.judged().rejected is None


def test_a_user_who_takes_rollbacks_away_gets_the_spec(make: Make) -> None:
    scene = rejecting(make, autoRollback=False)
    assert scene.judged().running == scene.target
    scene = rejecting(make, tried=False, autoRollback=False)
    assert scene.judged().running == GOOD, "what the API server refuses cannot run"


def test_what_was_refused_before_a_pod_was_touched_is_looked_at_again(make: Make) -> None:
    scene = rejecting(make, tried=False)
    decided = scene.judged()
    assert rollout.begins(scene.snapshot, decided)
    refusal = rollout.refusal(decided)
    assert refusal is not None
    assert (refusal.reason, rollout.refusal(rejecting(make).judged())) == ("RankFailed", None)


def test_a_status_of_rollout_survives_a_round_trip(make: Make) -> None:
    scene = rejecting(make)
    told = rollout.revisions(scene.snapshot)
    scene.resource["status"]["rollout"] = told.as_status()
    assert rollout.revisions(scene.snapshot) == told


# --- surge ---


def surges(scene: Scene) -> int:
    return rollout.surge(scene.snapshot, specs.parse(scene.resource["spec"]), scene.judged())


@pytest.mark.parametrize(
    ("seconds", "pod", "surge"),
    [
        (29, NO_NODE, 1),
        (30, NO_NODE, 0),
        (30, {**DOWN, "scheduled": None}, 0),
        (300, LOADS, 1),
    ],
)
def test_surge_only_if_the_extra_pod_finds_a_node_soon(make: Make, seconds: float, pod: Object, surge: int) -> None:
    scene = Scene(make, strategy="Surge").old().old().new(seconds, **pod)
    assert surges(scene) == surge
    decided = scene.judged()
    assert (decided.no_surge == scene.target) == (surge == 0)
    scene.resource["status"]["rollout"] = decided.as_status()
    scene.pods.pop()
    assert surges(scene) == surge, "of this revision it is not asked again"
    scene.resource["spec"]["engine"] = {"maxNumSeqs": 5}
    assert surges(scene) == 1, "of the next it is"


def test_no_surge_by_default(make: Make) -> None:
    assert surges(Scene(make).old().old()) == 0


def test_the_extra_pod_may_wait_for_one_that_drains(make: Make) -> None:
    scene = Scene(make, strategy="Surge").old().new(60.0, **NO_NODE).old(deleting=True, draining=True)
    assert surges(scene) == 1


def test_an_extra_pod_that_cannot_be_made(make: Make) -> None:
    scene = Scene(make, strategy="Surge").old().old()
    scene.deployment["status"]["conditions"] = conditions(("ReplicaFailure", "True", "FailedCreate"))
    assert surges(scene) == 0


@pytest.mark.parametrize(("budget", "surge"), [(5, 0), (6, 1)])
def test_surge_stays_within_the_gpu_budget(make: Make, budget: int, surge: int) -> None:
    scene = Scene(make, strategy="Surge").old().old()
    scene.resource["spec"]["autoscaling"] = {"mode": "Disabled", "maxGpus": budget}
    assert surges(scene) == surge


def test_surge_counts_the_gpus_that_pods_hold_and_not_those_that_the_next_will(make: Make) -> None:
    """From four GPUs to two: an extra pod beside those of four was over the budget."""
    scene = Scene(make, strategy="Surge").old().old()
    scene.resource["spec"]["autoscaling"] = {"mode": "Disabled", "max": 3, "maxGpus": 6}
    assert surges(scene) == 1
    scene.templates[GOOD] = {"spec": {"containers": [{"name": "runtime", "args": ["serve", "m", "--ranks", "4"]}]}}
    assert surges(scene) == 0


def test_a_pod_waits_for_the_drain_of_those_that_run_and_not_for_its_own(make: Make) -> None:
    """The spec asks for a shorter drain: the new revision was rejected while an old pod still ended its requests."""
    scene = Scene(make).old().new(1800 + 60, **NO_NODE)
    assert scene.verdict == "ProgressDeadlineExceeded"
    scene.templates[GOOD] = {"spec": {"terminationGracePeriodSeconds": 3630}}
    assert scene.verdict is None
    scene.pods.pop()
    assert scene.new(1800 + 3630, **NO_NODE).verdict == "ProgressDeadlineExceeded"


@pytest.mark.parametrize(("surge", "strategy"), [(0, (0, 1)), (1, (1, 0))])
def test_at_most_one_pod_is_away(make: Make, surge: int, strategy: tuple[int, int]) -> None:
    resource = make.resource()
    made = manifests.deployment(resource, specs.parse(resource["spec"]), {}, manifests.Rolling(surge))["spec"]
    assert (made["strategy"]["rollingUpdate"]["maxSurge"], made["strategy"]["rollingUpdate"]["maxUnavailable"]) == (
        strategy
    )
    assert made["minReadySeconds"] == 10
    assert made["progressDeadlineSeconds"] == 1800 + 60
