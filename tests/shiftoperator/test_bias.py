"""The policy of those that serve while others are away, in whole passes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from shiftoperator.snapshot import Load
from shiftoperator.spec import Policy

from .conftest import Make
from .test_reconcile import World

BUSY = Load(running_requests=12, max_running_requests=16)
QUIET = Load(running_requests=1, max_running_requests=16)
DISABLED = {"mode": "Disabled"}


async def serving(make: Make, **spec: object) -> World:
    """Two pods, all as asked."""
    world = await World(make, replicas=2, autoscaling=DISABLED, **spec).healthy()
    world.cluster.add_pod("p2", world.cluster.resource["status"]["templateHash"])
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    world.cluster.events.clear()
    return world


def load(world: World, load: Load) -> None:
    for uid, state in world.runtimes.pods.items():
        world.runtimes.pods[uid] = replace(state, load=load)


def policy(world: World) -> tuple[str, int]:
    told = world.cluster.resource["status"]
    return told["policy"]["mode"], told["policyGeneration"]


async def test_survivors_are_biased_to_throughput_and_restored(make: Make) -> None:
    world = await serving(make)
    load(world, BUSY)
    await world.full()
    assert policy(world) == ("Auto", 1), "nobody is away"
    lost = world.cluster.objects.pop(("Pod", "p2"))
    await world.full()
    assert policy(world) == ("Throughput", 2)
    assert world.runtimes.pods["uid-p1"].policy == Policy("Throughput")
    assert world.condition("PolicyInSync") == ("True", "Applied")
    [said] = [c for c in world.cluster.resource["status"]["conditions"] if c["type"] == "PolicyInSync"]
    assert "Throughput in place of Auto" in said["message"]
    before = len(world.cluster.writes)
    for _ in range(3):
        await world.full()
    assert len(world.cluster.writes) == before, "set once"
    world.cluster.objects["Pod", "p2"] = lost
    await world.full()
    assert policy(world) == ("Auto", 3)
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 64)
    assert world.runtimes.pods["uid-p2"].policy == Policy("Auto", 64)
    assert world.cluster.events.count("PolicyAccepted") == 2


@pytest.mark.parametrize(
    ("mode", "seen", "biased"),
    [("Auto", BUSY, True), ("Auto", QUIET, False), ("Latency", BUSY, False), ("Throughput", BUSY, False)],
)
async def test_who_is_biased(make: Make, mode: str, seen: Load, biased: bool) -> None:
    world = await serving(make, shift={"policy": mode})
    load(world, seen)
    del world.cluster.objects["Pod", "p2"]
    await world.full()
    assert policy(world) == (("Throughput", 2) if biased else (mode, 1))


async def test_a_user_who_changes_the_policy_meanwhile_is_heard(make: Make) -> None:
    world = await serving(make)
    load(world, BUSY)
    del world.cluster.objects["Pod", "p2"]
    await world.full()
    world.cluster.resource["spec"]["shift"] = {"policy": "Latency"}
    world.cluster.resource["metadata"]["generation"] += 1
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert policy(world) == ("Latency", 3)
    world.restart_operator()
    await world.full()
    assert policy(world) == ("Latency", 3)


async def test_a_threshold_that_the_operator_moved_is_not_told_as_a_bias(make: Make) -> None:
    """Every accepted policy that was not the one of the spec was told as one that lasts until all pods serve."""
    bounds = {"mode": "Apply", "minTokens": 8, "maxTokens": 512}
    world = await serving(make, shift={"policy": "Auto", "adaptive": bounds})
    notes: list[str] = []
    create = world.cluster.create

    async def noted(obj: dict[str, str]) -> object:
        notes.append(obj["note"])
        return await create(obj)

    world.cluster.create = noted  # type: ignore[method-assign,assignment]
    world.cluster.resource["status"]["adaptive"] = {"mode": "Apply", "thresholdTokens": 32}
    await world.full()
    [note] = [note for note in notes if "accepted by" in note]
    assert note.startswith("Auto, generation 2")


async def test_a_rollout_is_one_bias_and_not_one_for_each_pod(make: Make) -> None:
    world = await serving(make)
    load(world, BUSY)
    world.cluster.resource["spec"]["engine"] = {"maxNumSeqs": 99}
    await world.full()
    assert policy(world) == ("Throughput", 2)
    new = world.cluster.resource["status"]["templateHash"]
    for old in ("p1", "p2"):
        del world.cluster.objects["Pod", old]
        await world.full()
        assert policy(world) == ("Throughput", 2)
        world.cluster.add_pod(f"new-{old}", new)
        world.runtimes.pods[f"uid-new-{old}"] = replace(world.runtimes.template, load=BUSY)
        await world.full()
    assert policy(world) == ("Auto", 3)
