"""The policy of those that serve while others are away, in whole passes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from shiftoperator.snapshot import Load
from shiftoperator.spec import Policy

from .conftest import Make
from .world import World

BUSY = Load(running_requests=16, max_running_requests=16)
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


async def test_bursts_of_requests_do_not_make_the_policy_flap(make: Make) -> None:
    """One request that waited began the bias and the next poll ended it, again and again, with a push for each."""
    world = await serving(make)
    del world.cluster.objects["Pod", "p2"]
    for seconds, seen in ((0, BUSY), (2, QUIET), (4, Load(waiting_requests=1)), (6, QUIET), (50, QUIET), (60, BUSY)):
        world.now = 100.0 + seconds
        load(world, seen)
        await world.poll() if seconds else await world.full()
        assert policy(world) == ("Throughput", 2), seconds
    load(world, QUIET)
    for seconds, expected in ((70, ("Throughput", 2)), (129, ("Throughput", 2)), (130, ("Auto", 3))):
        world.now = 100.0 + seconds
        await world.poll()
        assert policy(world) == expected, seconds


async def test_an_operator_that_takes_over_does_not_end_a_bias_before_it_asked_the_pods(make: Make) -> None:
    """Pods that were not asked yet counted as hardly used."""
    world = await serving(make)
    load(world, BUSY)
    del world.cluster.objects["Pod", "p2"]
    await world.full()
    world.restart_operator()
    await world.full()
    assert policy(world) == ("Throughput", 2)


async def test_a_pod_that_finds_no_node_does_not_pin_the_others_for_days(make: Make) -> None:
    world = await serving(make)
    load(world, BUSY)
    leaves = world.cluster.objects["Pod", "p2"]
    leaves["metadata"]["deletionTimestamp"] = "1970-01-01T00:01:40Z"
    world.cluster.add_pod("p3", world.cluster.resource["status"]["templateHash"])
    queued = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    world.cluster.objects["Pod", "p3"]["status"] = {"conditions": [queued]}
    await world.full()
    assert policy(world) == ("Throughput", 2), "it takes the place of the one that leaves"
    del world.cluster.objects["Pod", "p2"]
    await world.full()
    assert policy(world) == ("Auto", 3)
    world.cluster.objects["Pod", "p3"]["status"] = {"conditions": [{**queued, "status": "True"}]}
    await world.full()
    assert policy(world) == ("Throughput", 4), "it loads, and will be back"


async def test_the_event_of_a_bias_says_what_ends_it(make: Make) -> None:
    """It named the pods' return alone; load that goes ends it as well."""
    world = await serving(make)
    load(world, BUSY)
    notes: list[str] = []
    create = world.cluster.create

    async def noted(obj: dict[str, str]) -> object:
        notes.append(obj["note"])
        return await create(obj)

    world.cluster.create = noted  # type: ignore[method-assign,assignment]
    del world.cluster.objects["Pod", "p2"]
    await world.full()
    [note] = [note for note in notes if "accepted by" in note]
    assert note.startswith("Throughput, while pods are away and others busy; then Auto again, generation 2")
