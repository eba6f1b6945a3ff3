"""Whole passes over what is refused: told once, and pods that run are looked after."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator.errors import UserError

from .conftest import Make
from .world import World


async def test_a_foreign_object_is_not_overwritten(make: Make) -> None:
    world = World(make)
    world.cluster.objects["Service", "gemma"] = {"kind": "Service", "metadata": {"name": "gemma"}}
    await world.full()
    assert world.condition("Ready") == ("False", "NameConflict")
    assert set(world.cluster.writes) == {"status"}


async def test_a_refusal_is_told_once(make: Make) -> None:
    """Passes that only poll apply nothing: they must not take back what the full pass found."""
    world = await World(make).healthy()
    world.cluster.refusals["Service"] = UserError("Forbidden", "services may not be patched")
    del world.cluster.objects["Service", "gemma"]
    for _ in range(3):
        await world.full()
        await world.poll()
        assert world.condition("Ready") == ("False", "Forbidden")
        assert world.condition("ScalingActive") == ("False", "NotDecided")
    assert world.cluster.writes == ["status"]
    assert sorted(world.cluster.events) == ["Forbidden", "Forbidden", "NotDecided", "SpecRefused"]
    world.cluster.refusals.clear()
    await world.poll()
    assert world.condition("Ready") == ("False", "Forbidden"), "only a full pass knows better"
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")


async def test_pods_that_run_are_looked_after_while_something_is_refused(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.objects["Service", "gemma"] = {"kind": "Service", "metadata": {"name": "gemma"}}
    world.runtimes.pods["uid-p1"] = world.runtimes.template
    await world.full()
    assert world.condition("Ready") == ("False", "NameConflict")
    assert world.runtimes.pods["uid-p1"].generation_accepted == 1


async def test_a_bad_spec_is_told(make: Make) -> None:
    world = World(make, parallelism={"gpus": 4, "sequence": 3, "tensor": 2})
    await world.full()
    assert world.condition("Ready") == ("False", "InvalidSpec")


@pytest.mark.parametrize("spec", ["gpus: 2", 7, None])
async def test_a_spec_of_another_shape_is_refused_at_every_pass(make: Make, spec: Any) -> None:
    """The answer to the write of the status brought it back into the pass after, which ended in a trace."""
    world = World(make)
    world.cluster.resource["spec"] = spec
    await world.full()
    await world.poll()
    await world.woken()
    assert world.condition("Ready") == ("False", "InvalidSpec")


async def test_a_bad_pod_template_is_told(make: Make) -> None:
    world = World(make, podTemplate={"spec": {"containers": [{"name": "runtime", "env": ["A=b"]}]}})
    await world.full()
    assert world.condition("Ready") == ("False", "InvalidSpec")
    [ready, *_] = world.cluster.resource["status"]["conditions"]
    assert ready["message"].startswith("podTemplate.spec.containers[0].env[0] must be an object")
