"""Scale-in with a chosen pod, against a stand-in of the controllers that choose by Kubernetes' rules."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from shiftoperator.errors import TransientError
from shiftoperator.snapshot import Load, Phase

from .conftest import Make
from .rollouts import CRASH, change, replace_pods
from .world import World

Object = dict[str, Any]
MARK, COST = "shiftparallel.dev/retiring", "controller.kubernetes.io/pod-deletion-cost"
IDLE = Load(max_running_requests=16)
ONE = Load(running_requests=1, max_running_requests=16)
TWO = replace(ONE, running_requests=2)
BURST = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=60.0)
SCALING = {
    "mode": "Apply",
    "min": 1,
    "max": 3,
    "windows": {"scaleOutSeconds": 4, "scaleInSeconds": 4, "drainSeconds": 30},
}


class Fleet(World):
    """Two pods that serve; `controllers` plays Deployment, ReplicaSet and kubelet."""

    def __init__(self, make: Make, replicas: int = 2, **spec: Any) -> None:
        super().__init__(make, replicas=replicas, **{"autoscaling": SCALING, **spec})
        self.loads: dict[str, Load] = {}
        self.born = 0
        # A controller that takes away what it likes instead.
        self.takes: str | None = None

    @property
    def pods(self) -> dict[str, Object]:
        return {name: obj for (kind, name), obj in self.cluster.objects.items() if kind == "Pod"}

    @property
    def replicas(self) -> int:
        return int(self.cluster.resource["spec"]["replicas"])

    async def started(self) -> Fleet:
        await self.full()
        self.controllers()
        await self.full()
        self.cluster.writes.clear()
        self.cluster.events.clear()
        return self

    def controllers(self) -> None:
        deployment = self.cluster.objects["Deployment", "gemma"]
        wanted = deployment["spec"]["replicas"]
        while len(self.pods) < wanted:
            self.born += 1
            hash_ = deployment["spec"]["template"]["metadata"]["annotations"]["shiftparallel.dev/template-hash"]
            self.cluster.add_pod(f"p{self.born}", hash_)
        for name in sorted(self.pods, key=self._rank)[: max(0, len(self.pods) - wanted)]:
            del self.cluster.objects["Pod", name]
        for name, pod in self.pods.items():
            draining = f"uid-{name}" in self.runtimes.pods and self.runtimes.pods[f"uid-{name}"].draining
            if draining:
                pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]

    def _rank(self, name: str) -> tuple[bool, bool, int, str]:
        """As a ReplicaSet ranks: not ready first, then the deletion cost."""
        pod = self.pods[name]
        ready = pod["status"]["conditions"][0]["status"] == "True"
        return name != self.takes, ready, int(pod["metadata"]["annotations"].get(COST, 0)), name

    async def turn(self, controllers: bool = True) -> None:
        self.now += 2.0
        for name in self.pods:
            uid = f"uid-{name}"
            state = self.runtimes.pods.get(uid, self.runtimes.template)
            self.runtimes.pods[uid] = replace(state, read_at=self.now, load=self.loads.get(name, IDLE))
        await self.full()
        await self.poll()
        if controllers:
            self.controllers()

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await self.turn()

    async def until_marked(self) -> str:
        for _ in range(5):
            await self.turn()
            marked = [name for name, pod in self.pods.items() if MARK in pod["metadata"]["annotations"]]
            if marked:
                return marked[0]
        raise AssertionError("no pod was marked")

    def writes(self) -> list[str]:
        return [write for write in self.cluster.writes if write.split()[0] in ("annotate", "scale", "delete")]


async def test_the_least_loaded_pod_is_marked_drained_and_leaves(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE}
    await fleet.turns(8)
    assert fleet.writes() == ["annotate p2", "scale 1"]
    assert fleet.runtimes.drained == ["p2"]
    assert set(fleet.pods) == {"p1"}
    [decision] = fleet.cluster.resource["status"]["decisions"]
    assert (decision["from"], decision["to"], decision["reason"]) == (2, 1, "LowUtilisation")
    assert fleet.condition("ScalingActive") == ("True", "Steady")


async def test_replicas_stay_until_the_pod_is_empty(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    assert await fleet.until_marked() == "p1"
    await fleet.turns(5)
    assert (fleet.replicas, fleet.runtimes.drained) == (2, ["p1"])
    assert fleet.condition("ScalingActive") == ("True", "Draining")
    assert fleet.condition("Ready") == ("True", "AllPodsReady"), "a pod that is emptied on purpose is not missed"
    fleet.loads["p1"] = IDLE
    await fleet.turns(2)
    assert (fleet.replicas, set(fleet.pods)) == (1, {"p2"})


async def test_the_wait_has_a_deadline(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    await fleet.until_marked()
    await fleet.turns(14)
    assert fleet.replicas == 2
    await fleet.turns(2)
    assert (fleet.replicas, set(fleet.pods)) == (1, {"p2"})


async def test_a_pod_that_cannot_be_drained_leaves_at_the_deadline(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.runtimes.deaf = True
    assert await fleet.until_marked() == "p2"
    await fleet.turns(17)
    assert (fleet.replicas, set(fleet.pods)) == (1, {"p1"}), "the deletion cost chooses it while it still serves"


async def test_nothing_is_written_while_a_pod_is_emptied(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    await fleet.until_marked()
    await fleet.turns(2)
    fleet.cluster.writes.clear()
    await fleet.turns(5)
    assert fleet.cluster.writes == []


@pytest.mark.parametrize("restart_after", range(8))
async def test_an_operator_that_restarts_goes_on_where_the_other_was(make: Make, restart_after: int) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE}
    for turn in range(16):
        await fleet.turn()
        if turn == restart_after:
            fleet.restart_operator()
    assert fleet.writes() == ["annotate p2", "scale 1"]
    assert set(fleet.pods) == {"p1"}


async def test_a_drained_pod_that_stays_is_replaced(make: Make) -> None:
    """Another pod left in its place: what is left takes no request, so a new pod must come."""
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE}
    fleet.takes = "p1"
    await fleet.turns(8)
    assert fleet.writes() == ["annotate p2", "scale 1", "delete Pod/p2"]
    assert fleet.cluster.events.count("AnotherPodLeft") == 1
    assert set(fleet.pods) == {"p3"}
    assert fleet.replicas == 1


async def test_a_marked_pod_that_serves_and_stays_keeps_serving(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.runtimes.deaf = True
    assert await fleet.until_marked() == "p2"
    fleet.cluster.resource["spec"]["replicas"] = 1
    fleet.takes = "p1"
    await fleet.turns(3)
    assert set(fleet.pods) == {"p2"}
    assert not {MARK, COST} & set(fleet.pods["p2"]["metadata"]["annotations"])
    assert "delete Pod/p2" not in fleet.writes()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("lost", ["scale", "status"])
async def test_a_scale_in_is_told_whatever_answer_was_lost(make: Make, lost: str, restarts: bool) -> None:
    """The size was lowered and nobody said why, when the writer heard nothing of it or ended just then."""
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    await fleet.until_marked()
    fleet.loads["p1"] = IDLE
    lower = fleet.cluster.patch_scale

    async def losing(obj: Object, replicas: int) -> None:
        fleet.cluster.lost = {lost}
        await lower(obj, replicas)

    fleet.cluster.patch_scale = losing  # type: ignore[method-assign]
    while fleet.replicas == 2:
        with suppress(TransientError):
            await fleet.turn(controllers=False)
    if restarts:
        fleet.restart_operator()
    await fleet.turns(3)
    assert [(d["from"], d["to"]) for d in fleet.cluster.resource["status"]["decisions"]] == [(2, 1)]
    assert set(fleet.pods) == {"p2"}


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_size_that_a_person_lowered_meanwhile_is_not_told_as_ours(make: Make, restarts: bool) -> None:
    """Both lower it to the same size, and only one of them did it."""
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    assert await fleet.until_marked() == "p1"
    await fleet.turn()
    fleet.cluster.scaled(1, "kubectl")
    if restarts:
        fleet.restart_operator()
    await fleet.turn(controllers=False)
    assert fleet.condition("ScalingActive") == ("True", "PodsLeaving")
    fleet.cluster.events.clear()
    await fleet.turns(3)
    assert fleet.cluster.resource["status"].get("decisions", []) == []
    assert set(fleet.pods) == {"p2"}


async def test_a_pod_that_could_not_be_drained_is_told_though_the_answer_was_lost(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.runtimes.deaf = True
    await fleet.until_marked()
    fleet.cluster.lost = {"scale"}
    while fleet.replicas == 2:
        with suppress(TransientError):
            await fleet.turn(controllers=False)
    await fleet.turns(3)
    assert [(d["from"], d["to"]) for d in fleet.cluster.resource["status"]["decisions"]] == [(2, 1)]


async def burst(fleet: Fleet) -> None:
    fleet.loads["p2"] = BURST


async def disable(fleet: Fleet) -> None:
    fleet.cluster.resource["spec"]["autoscaling"] = {"mode": "Disabled"}


async def other_scaler(fleet: Fleet) -> None:
    fleet.cluster.objects["HorizontalPodAutoscaler", "hpa"] = {
        "metadata": {"name": "hpa"},
        "spec": {"scaleTargetRef": {"kind": "ShiftDeployment", "name": "gemma"}},
    }


async def raise_minimum(fleet: Fleet) -> None:
    fleet.cluster.resource["spec"]["autoscaling"] = {**SCALING, "min": 2}


async def scale_up(fleet: Fleet) -> None:
    fleet.cluster.resource["spec"]["replicas"] = 3


async def roll_out(fleet: Fleet) -> None:
    fleet.cluster.resource["spec"]["engine"] = {"maxNumSeqs": 4}


@pytest.mark.parametrize("change", [burst, disable, other_scaler, raise_minimum, scale_up, roll_out])
async def test_a_scale_in_that_is_given_up_replaces_the_drained_pod_when_it_is_empty(make: Make, change: Any) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    assert await fleet.until_marked() == "p1"
    await fleet.turn()
    await change(fleet)
    before = fleet.replicas
    for _ in range(4):
        await fleet.turn()
        assert "p1" in fleet.pods, "it still answers a request"
    fleet.loads["p1"] = IDLE
    await fleet.turns(2)
    assert "p1" not in fleet.pods
    assert len(fleet.pods) == before == fleet.replicas
    assert [write for write in fleet.writes() if write.startswith("scale")] == []
    assert "ScaleInGivenUp" in fleet.cluster.events


@pytest.mark.parametrize("turns", range(1, 9))
async def test_survivors_that_ask_for_pods_keep_the_scale_in_from_going_on(make: Make, turns: int) -> None:
    """It was given up for one pass in so many as the window of a scale-out has, and went on in all the others."""
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    assert await fleet.until_marked() == "p1"
    await fleet.turn()
    await burst(fleet)
    await fleet.turns(3 + turns)
    fleet.loads["p1"] = IDLE
    await fleet.turns(2)
    assert "p1" not in fleet.pods
    assert [write for write in fleet.writes() if write.startswith("scale")] == []


async def test_a_scale_in_is_given_up_for_pods_that_the_budget_pays_for_as_they_are(make: Make) -> None:
    """A spec of four GPUs for each pod was rolled back to two: of those the budget pays for one more."""
    fleet = await Fleet(make, autoscaling={**SCALING, "maxGpus": 6}).started()
    change(fleet, parallelism={"gpus": 4})
    await fleet.full()
    replace_pods(fleet, CRASH)
    await fleet.full()
    replace_pods(fleet)
    fleet.controllers()
    await fleet.full()
    assert fleet.condition("Ready") == ("False", "RolledBack")
    fleet.loads = dict(zip(fleet.pods, (ONE, TWO), strict=True))
    leaves = await fleet.until_marked()
    [stays] = set(fleet.pods) - {leaves}
    await fleet.turn()
    fleet.loads[stays] = BURST
    await fleet.turns(5)
    fleet.loads[leaves] = IDLE
    await fleet.turns(2)
    assert leaves not in fleet.pods
    assert [write for write in fleet.writes() if write.startswith("scale")] == []


async def test_a_scale_in_goes_on_when_survivors_ask_no_more(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    assert await fleet.until_marked() == "p1"
    await fleet.turn()
    await burst(fleet)
    await fleet.turns(6)
    fleet.loads["p2"] = TWO
    await fleet.turns(2)
    fleet.loads["p1"] = IDLE
    await fleet.turns(2)
    assert (fleet.replicas, set(fleet.pods)) == (1, {"p2"})


async def test_what_survivors_showed_does_not_count_for_all(make: Make) -> None:
    """The window of a scale-out had passed without the pod that was kept after all, and another was ordered at once."""
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    fleet.runtimes.deaf = True
    assert await fleet.until_marked() == "p1"
    await burst(fleet)
    for _ in range(6):
        await fleet.turn()
        if MARK not in fleet.pods["p1"]["metadata"]["annotations"]:
            break
    assert fleet.writes() == ["annotate p1", "annotate p1"]
    await fleet.turn()
    assert fleet.replicas == 2, "both of them are looked at for the first time"
    await fleet.turns(3)
    assert fleet.replicas == 3


async def test_a_suspended_service_does_not_go_on_with_a_scale_in(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": ONE, "p2": TWO}
    assert await fleet.until_marked() == "p1"
    await fleet.turn()
    fleet.cluster.writes.clear()
    fleet.loads["p1"] = IDLE
    fleet.cluster.resource["spec"]["suspend"] = True
    for _ in range(3):
        await fleet.turn(controllers=False)
    assert fleet.writes() == [], "the pod was empty, and replicas keep their number for later"
    assert fleet.condition("ScalingActive") == ("False", "Suspended")
    assert fleet.cluster.resource["status"]["readyOfDesired"].endswith("/0")
    await fleet.turns(2)
    assert (fleet.pods, fleet.replicas) == ({}, 2)
    assert fleet.condition("Paused") == ("True", "Suspended")
    fleet.cluster.resource["spec"]["suspend"] = False
    await fleet.turns(2)
    assert (len(fleet.pods), fleet.writes()) == (2, [])


async def test_the_status_shows_no_start_up_phase_of_a_pod_that_is_emptied(make: Make) -> None:
    fleet = await Fleet(make).started()
    fleet.runtimes.pods["uid-p1"] = replace(fleet.runtimes.pods["uid-p1"], phases=(Phase("warm", 1.0, 0, True),))
    fleet.loads = {"p1": ONE, "p2": TWO}
    assert await fleet.until_marked() == "p1"
    await fleet.turns(3)
    told = next(pod for pod in fleet.cluster.resource["status"]["pods"] if pod["name"] == "p1")
    assert (told["ready"], "phase" in told) == (False, False)
    assert fleet.condition("ModelLoaded") == ("True", "Loaded")
    assert fleet.condition("Progressing") == ("True", "PodsStopping")
    assert fleet.condition("Degraded") == ("False", "AsAsked")


async def test_pods_that_do_not_serve_leave_first_and_without_a_drain(make: Make) -> None:
    fleet = await Fleet(make, replicas=3).started()
    fleet.pods["p2"]["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    fleet.loads = {"p1": ONE}
    await fleet.turns(4)
    assert fleet.writes()[:1] == ["scale 2"]
    assert set(fleet.pods) == {"p1", "p3"}


async def test_above_the_maximum_several_leave_at_once(make: Make) -> None:
    fleet = await Fleet(make, replicas=3).started()
    fleet.loads = {"p1": ONE, "p2": TWO, "p3": ONE}
    await fleet.turn()
    fleet.cluster.resource["spec"]["autoscaling"] = {**SCALING, "max": 1}
    await fleet.turns(2)
    fleet.loads["p1"] = fleet.loads["p3"] = IDLE
    await fleet.turns(3)
    assert set(fleet.pods) == {"p2"}
    assert fleet.writes() == ["annotate p1", "annotate p3", "scale 1"]


@pytest.mark.parametrize(
    "mark", ["", "{", "[]", '{"from": "two"}', json.dumps({"from": 9, "since": "x", "reason": "", "message": ""})]
)
async def test_a_mark_that_cannot_be_read_is_taken_off(make: Make, mark: str) -> None:
    fleet = await Fleet(make).started()
    fleet.loads = {"p1": BURST, "p2": ONE}
    fleet.pods["p2"]["metadata"]["annotations"][MARK] = mark
    await fleet.turn()
    assert set(fleet.pods) == {"p1", "p2"}
    assert fleet.pods["p2"]["metadata"]["annotations"].get(MARK, "") == ""


async def test_an_ordered_pod_is_not_ordered_again(make: Make) -> None:
    fleet = await Fleet(make, replicas=1).started()
    fleet.loads = {"p1": BURST}
    for _ in range(8):
        await fleet.turn(controllers=False)
    assert [write for write in fleet.writes() if write.startswith("scale")] == ["scale 2"]
    assert fleet.condition("ScalingActive") == ("True", "CapacityComing")
