"""Whole passes that change the number of pods, only recommend it, or keep out of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from shiftoperator.errors import ConflictError, TransientError, UserError
from shiftoperator.snapshot import Load

from .conftest import Make
from .world import World, scale_path

Object = dict[str, Any]
BURST = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)


async def test_scales_out_and_in(make: Make) -> None:
    world = await World(make).healthy()
    assert (await scale_path(world, BURST, 5))[-1] == 2
    assert "scale 2" in world.cluster.writes
    assert (await scale_path(world, Load(max_running_requests=16), 15))[-1] == 1
    decisions = world.cluster.resource["status"]["decisions"]
    assert [(d["from"], d["to"], d["reason"], d["applied"]) for d in decisions] == [
        (2, 1, "Idle", True),
        (1, 2, "QueueTooOld", True),
    ]
    assert world.condition("ScalingActive")[0] == "True"


async def scale_out_through_losses(world: World, **lost: str) -> list[tuple[int, int]]:
    """From one pod to two; what is lost is lost once the scaling begins. Returns the decisions told."""
    world.cluster.lost = set(lost.values())
    for _ in range(4):
        with suppress(TransientError):
            await scale_path(world, BURST, 3)
    return [(d["from"], d["to"]) for d in world.cluster.resource["status"].get("decisions", [])]


async def test_a_scale_out_whose_answer_was_lost_is_told(make: Make) -> None:
    assert await scale_out_through_losses(await World(make).healthy(), lost="scale") == [(1, 2)]


async def test_a_scale_out_that_a_person_did_instead_is_not_told_as_ours(make: Make) -> None:
    """The write was not taken, and somebody asked for the same size before the next look."""
    world = await World(make).healthy()
    world.cluster.refusals["scale"] = TransientError("no API")
    with pytest.raises(TransientError):
        await scale_path(world, BURST, 5)
    del world.cluster.refusals["scale"]
    world.cluster.scaled(2, "kubectl")
    await scale_path(world, BURST, 2)
    assert world.cluster.resource["status"].get("decisions", []) == []


async def test_recommend_only_says_it_and_once(make: Make) -> None:
    world = await World(make, autoscaling={"mode": "Recommend", "max": 2, "windows": {"scaleOutSeconds": 2}}).healthy()
    burst = replace(BURST, oldest_wait_seconds=60.0)
    assert set(await scale_path(world, burst, 10)) == {1}
    assert not any(write.startswith("scale") for write in world.cluster.writes)
    [decision] = world.cluster.resource["status"]["decisions"]
    assert (decision["to"], decision["applied"]) == (2, False)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [({"autoscaling": {"mode": "Disabled"}}, "Disabled"), ({"replicas": 0}, "ScaledToZero")],
)
async def test_the_autoscaler_keeps_out(make: Make, spec: Object, reason: str) -> None:
    world = World(make, **spec)
    await world.full()
    assert world.condition("ScalingActive") == ("False", reason)


async def test_another_scaler_has_precedence(make: Make) -> None:
    world = World(make)
    world.cluster.objects["HorizontalPodAutoscaler", "hpa"] = {
        "metadata": {"name": "hpa"},
        "spec": {"scaleTargetRef": {"kind": "ShiftDeployment", "name": "gemma"}},
    }
    await world.full()
    assert world.condition("ScalingActive") == ("False", "ExternalScaler")


async def test_a_scale_that_failed_keeps_its_window(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.refusals["scale"] = ConflictError("the object changed")
    with pytest.raises(ConflictError):
        await scale_path(world, BURST, 5)
    world.cluster.refusals.clear()
    assert await scale_path(world, BURST, 1) == [2], "at once, not after another window"


async def test_a_refused_scale_is_told(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.refusals["scale"] = UserError("Forbidden", "shiftdeployments/scale may not be patched")
    assert set(await scale_path(world, BURST, 6)) == {1}
    assert world.condition("ScalingActive") == ("False", "Forbidden")
    assert not world.cluster.resource["status"].get("decisions")
