"""A changed spec, and pods that follow the template: what drives a rollout in whole passes."""

from __future__ import annotations

from typing import Any

from .conftest import Make
from .world import World

Object = dict[str, Any]


def running(world: World) -> str:
    """The hash of the template in the Deployment."""
    deployment = world.cluster.objects["Deployment", "gemma"]
    return str(deployment["spec"]["template"]["metadata"]["annotations"]["shiftparallel.dev/template-hash"])


def change(world: World, **spec: Any) -> None:
    world.cluster.resource["spec"].update(spec)
    world.cluster.resource["metadata"]["generation"] += 1


def replace_pods(world: World, ended: Object | None = None) -> None:
    """All of them by one of the Deployment's template, which ended like this or is ready."""
    for kind, name in list(world.cluster.objects):
        if kind == "Pod":
            del world.cluster.objects[kind, name]
    name = f"q{len(world.cluster.writes)}"
    world.cluster.add_pod(name, running(world))
    if ended is not None:
        world.cluster.objects["Pod", name]["status"] |= {
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
            "containerStatuses": [{"name": "runtime", "state": {"terminated": ended}}],
        }


CRASH: Object = {"exitCode": 1, "message": '{"reason": "ModelNotFound", "message": "nothing lies there"}'}


async def rolled_back(make: Make, **spec: Any) -> World:
    """At rest after a change of the spec whose only pod failed."""
    world = await World(make).healthy()
    change(world, **spec)
    await world.full()
    replace_pods(world, CRASH)
    await world.full()
    replace_pods(world)
    await world.full()
    await world.full()
    world.cluster.writes.clear()
    world.cluster.events.clear()
    return world
