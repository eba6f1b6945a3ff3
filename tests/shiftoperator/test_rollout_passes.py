"""Whole passes through a rollout that is paused, has no room, waits long, or must not begin."""

from __future__ import annotations

import pytest
from shiftoperator import manifests

from .conftest import Make
from .rollouts import change, replace_pods, running
from .world import World


async def test_a_paused_rollout_replaces_nothing_and_says_so(make: Make) -> None:
    world = await World(make).healthy()
    change(world, engine={"maxNumSeqs": 99}, rollout={"paused": True})
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["paused"] is True
    assert world.condition("Ready") == ("False", "RolloutPaused")
    assert world.condition("Progressing") == ("False", "RolloutPaused")
    assert world.condition("Paused") == ("True", "RolloutPaused")
    change(world, rollout={})
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["paused"] is False
    assert world.condition("Progressing") == ("True", "RollingOut")


async def test_a_new_resource_with_a_paused_rollout_gets_its_first_pods(make: Make) -> None:
    """The Deployment was paused from the first: its controller never made a pod, and the status said they start."""
    world = World(make, autoscaling={"mode": "Disabled"}, rollout={"paused": True})
    deployment = lambda: world.cluster.objects["Deployment", "gemma"]  # noqa: E731
    for _ in range(2):
        await world.full()
        assert deployment()["spec"]["paused"] is False, "until there is a pod"
    world.cluster.add_pod("p1", running(world))
    for _ in range(2):
        await world.full()
        assert deployment()["spec"]["paused"] is True
    del world.cluster.objects["Deployment", "gemma"], world.cluster.objects["Pod", "p1"]
    for _ in range(2):
        await world.full()
        assert deployment()["spec"]["paused"] is False, "of a Deployment that was lost the same"
    deployment()["metadata"]["generation"] = 1
    deployment()["status"] = {"observedGeneration": 1}
    await world.full()
    assert deployment()["spec"]["paused"] is True, "its controller has made the ReplicaSet"
    change(world, replicas=2)
    await world.full()
    assert deployment()["spec"]["paused"] is True


async def test_a_surge_without_room_is_given_up_once(make: Make) -> None:
    world = await World(make, autoscaling={"mode": "Disabled"}, rollout={"strategy": "Surge"}).healthy()
    rolling = lambda: world.cluster.objects["Deployment", "gemma"]["spec"]["strategy"]["rollingUpdate"]  # noqa: E731
    assert rolling() == {"maxSurge": 1, "maxUnavailable": 0}
    change(world, engine={"maxNumSeqs": 99})
    await world.full()
    world.cluster.add_pod("extra", running(world))
    extra = world.cluster.objects["Pod", "extra"]
    extra["metadata"]["creationTimestamp"] = "1970-01-01T00:01:40Z"
    extra["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
    await world.full()
    assert rolling()["maxSurge"] == 1
    world.now = 131.0
    for _ in range(3):
        await world.full()
    assert rolling() == {"maxSurge": 0, "maxUnavailable": 1}
    assert world.cluster.events.count("SurgeGivenUp") == 1


async def test_pods_that_an_earlier_operator_hashed_with_what_is_empty_stay(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash of the very same spec is another one; no pod may restart for that."""
    world = World(make, observability={"logs": {}}, shift={"policy": "Auto", "calibration": {}})
    now, before = manifests.template_hashes(world.cluster.resource["spec"])
    with monkeypatch.context() as earlier:
        earlier.setattr(manifests, "template_hashes", lambda spec: (before, before))
        await world.healthy()
    assert running(world) == before != now
    world.restart_operator()
    for _ in range(3):
        await world.full()
    assert running(world) == before
    assert [write for write in world.cluster.writes if "Deployment" in write or "Revision" in write] == []
    change(world, observability={"logs": {"level": "debug"}})
    await world.full()
    assert running(world) != before, "what says something counts as ever"


async def test_a_rollout_waits_as_long_as_the_pods_that_leave_may_take(make: Make) -> None:
    """A shorter drain in the spec is that of the next pods: those that run have their hour."""
    world = await World(make, rollout={"drainSeconds": 3600, "progressDeadlineSeconds": 600}).healthy()
    deadlines = []
    for drain in (3600, 0):
        change(world, rollout={"drainSeconds": drain, "progressDeadlineSeconds": 600})
        await world.full()
        deadlines.append(world.cluster.objects["Deployment", "gemma"]["spec"]["progressDeadlineSeconds"])
    replace_pods(world)
    world.now += 60.0
    for _ in range(2):
        await world.full()
    deadlines.append(world.cluster.objects["Deployment", "gemma"]["spec"]["progressDeadlineSeconds"])
    assert deadlines == [4230, 4230, 630]
