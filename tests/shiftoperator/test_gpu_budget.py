"""What autoscaling.maxGpus pays for: pods as large as those that are there, whatever the spec says of them by now."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator.errors import UserError
from shiftoperator.snapshot import Load

from .conftest import Make
from .rollouts import CRASH, change, replace_pods
from .world import World, scale_path

Object = dict[str, Any]
BURST = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)


async def at_two_gpus(make: Make, max_gpus: int) -> World:
    windows = {"scaleOutSeconds": 5, "scaleInSeconds": 20}
    autoscaling = {"mode": "Apply", "min": 1, "max": 4, "maxGpus": max_gpus, "windows": windows}
    return await World(make, autoscaling=autoscaling).healthy()


async def roll_back(world: World, gpus: int) -> None:
    change(world, parallelism={"gpus": gpus})
    await world.full()
    replace_pods(world, CRASH)
    await world.full()
    replace_pods(world)
    await world.full()
    assert world.condition("Ready") == ("False", "RolledBack")


async def refuse(world: World, gpus: int) -> None:
    """The API server refuses the new template before a pod is touched."""
    world.cluster.refusals["dry run"] = UserError("Invalid", "spec.template: Forbidden")
    change(world, parallelism={"gpus": gpus})
    await world.full()
    assert world.condition("Ready")[0] == "False"


async def begin_rollout(world: World, gpus: int) -> None:
    change(world, parallelism={"gpus": gpus})
    await world.full()


async def pause(world: World, gpus: int) -> None:
    change(world, parallelism={"gpus": gpus}, rollout={"paused": True})
    await world.full()


@pytest.mark.parametrize("not_followed", [roll_back, refuse, begin_rollout, pause])
async def test_the_budget_counts_the_gpus_that_pods_hold(make: Make, not_followed: Any) -> None:
    """The spec said one GPU, pods held two each: a budget of four GPUs let four pods come, and eight GPUs with them."""
    world = await at_two_gpus(make, max_gpus=4)
    await not_followed(world, gpus=1)
    assert max(await scale_path(world, BURST, 20)) == 2
    assert world.condition("ScalingActive") == ("True", "GpuBudget")


async def test_the_end_of_a_rollout_to_smaller_pods_takes_none_of_them(make: Make) -> None:
    """The budget was counted in pods of two GPUs until the last of those was gone and the smaller ones were good, and
    with the last one on its way no rollout held the scale-in back."""
    windows = {"scaleOutSeconds": 5, "scaleInSeconds": 600}
    autoscaling = {"mode": "Apply", "min": 1, "max": 4, "maxGpus": 8, "windows": windows}
    world = await World(make, replicas=4, autoscaling=autoscaling).healthy()
    for name in ("p2", "p3", "p4"):
        world.cluster.add_pod(name, world.cluster.resource["status"]["templateHash"])
    await world.full()
    change(world, parallelism={"gpus": 1}, autoscaling={**autoscaling, "maxGpus": 4})
    await world.full()
    leaving = world.cluster.objects["Pod", "p4"]
    for name in ("p1", "p2", "p3"):
        del world.cluster.objects["Pod", name]
    for name in ("n1", "n2", "n3", "n4"):
        world.cluster.add_pod(name, world.cluster.resource["status"]["templateHash"])
    leaving["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    for _ in range(3):
        await world.full()
    assert world.cluster.resource["spec"]["replicas"] == 4
    assert "replicas hold" not in str(world.cluster.resource["status"]["conditions"])


async def test_a_budget_is_not_lost_to_a_spec_of_larger_pods_that_was_rolled_back(make: Make) -> None:
    world = await at_two_gpus(make, max_gpus=4)
    await roll_back(world, gpus=4)
    assert max(await scale_path(world, BURST, 20)) == 2
