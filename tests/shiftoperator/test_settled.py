"""What a pass finds: whether it is to be looked at again soon, or is as it was asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from shiftoperator.errors import UserError
from shiftoperator.plan import Found

from .conftest import Make
from .rollouts import change, rolled_back
from .world import World

Object = dict[str, Any]


async def test_what_serves_as_it_was_asked_for_is_settled(make: Make) -> None:
    world = await World(make).healthy()
    assert await world.full() is await world.woken() is await world.poll() is Found.SETTLED


def too_few(world: World) -> None:
    """A quota lets no more be made."""
    world.cluster.scaled(2, "kubectl")


def too_many(world: World) -> None:
    world.cluster.add_pod("p2", world.cluster.resource["status"]["templateHash"])


def not_ready(world: World) -> None:
    world.cluster.objects["Pod", "p1"]["status"]["conditions"] = [{"type": "Ready", "status": "False"}]


def ready_since_a_moment(world: World) -> None:
    """Another revision, all pods of which are ready: it is not good yet."""
    change(world, engine={"maxNumSeqs": 99})
    pod = world.cluster.objects["Pod", "p1"]
    since = datetime.fromtimestamp(world.now - 1.0, UTC).isoformat()
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": since}
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}, ready]

    def follow(resource: Object) -> None:
        template = world.cluster.objects["Deployment", "gemma"]["spec"]["template"]
        pod["metadata"]["annotations"] = dict(template["metadata"]["annotations"])

    world.cluster.meanwhile = follow


def rolls(world: World) -> None:
    change(world, engine={"maxNumSeqs": 99})


def refused(world: World) -> None:
    change(world, autoscaling={"mode": "Apply"})


def refused_before_a_pod_was_touched(world: World) -> None:
    """As for a Secret that is not there."""
    world.cluster.refusals["dry run"] = UserError("Invalid", "spec.template: Forbidden")
    change(world, engine={"maxNumSeqs": 99})


@pytest.mark.parametrize(
    "happens",
    [too_few, too_many, not_ready, ready_since_a_moment, rolls, refused, refused_before_a_pod_was_touched],
)
async def test_what_is_not_as_it_was_asked_for_is_not_settled(make: Make, happens: Any) -> None:
    world = await World(make, autoscaling={"mode": "Disabled"}).healthy()
    happens(world)
    await world.full()
    assert await world.full() is Found.UNSETTLED
    assert await world.poll() is Found.UNSETTLED


async def test_a_revision_is_settled_once_it_is_good(make: Make) -> None:
    world = await World(make, autoscaling={"mode": "Disabled"}).healthy()
    ready_since_a_moment(world)
    await world.full()
    await world.full()
    world.now += 10.0
    assert await world.full() is Found.SETTLED


async def test_a_rollback_that_is_done_is_settled(make: Make) -> None:
    world = await rolled_back(make, engine={"maxNumSeqs": 99})
    assert await world.full() is Found.SETTLED


@pytest.mark.parametrize("spec", [{"replicas": 0}, {"suspend": True}])
async def test_without_pods_and_none_asked_for(make: Make, spec: Object) -> None:
    world = World(make, **spec)
    await world.full()
    assert await world.full() is Found.SETTLED


async def test_gone(make: Make) -> None:
    world = await World(make).healthy()
    del world.cluster.objects["ShiftDeployment", "gemma"]
    assert await world.full() is Found.GONE
