"""Whole passes over a resource that is suspended, and what its metrics say."""

from __future__ import annotations

import copy

from shiftoperator import manifests, spec
from shiftprotos import contract

from .conftest import Make
from .world import KEY, World


async def test_suspend_and_resume(make: Make) -> None:
    world = await World(make, replicas=2, autoscaling={"mode": "Apply", "min": 2, "max": 4}).healthy()
    template_hash = world.cluster.resource["status"]["templateHash"]
    world.cluster.resource["spec"]["suspend"] = True
    await world.full()
    deployment = world.cluster.objects["Deployment", "gemma"]
    assert (deployment["spec"]["replicas"], world.cluster.resource["spec"]["replicas"]) == (0, 2)
    assert world.condition("Paused") == ("True", "Suspending")
    assert world.condition("ScalingActive") == ("False", "Suspended")
    del world.cluster.objects["Pod", "p1"]
    for _ in range(3):
        await world.full()
    assert world.condition("Ready") == ("False", "Suspended")
    assert world.condition("Paused") == ("True", "Suspended")
    assert not any(write.startswith("scale") for write in world.cluster.writes)
    world.cluster.resource["spec"]["suspend"] = False
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["replicas"] == 2
    assert world.condition("Ready") == ("False", "PodsStarting")
    assert world.cluster.resource["status"]["templateHash"] == template_hash


def test_suspend_replaces_no_pod(make: Make) -> None:
    plain = make.resource()["spec"]
    for suspend in (True, False):
        changed = {**copy.deepcopy(plain), "suspend": suspend}
        assert manifests.template_hash(changed) == manifests.template_hash(plain)
        assert spec.parse(changed).pods == (0 if suspend else 1)
    assert spec.parse(plain).pods == 1, "an object stored before the field was there"


def series(world: World, name: str) -> dict[str, float]:
    return {
        ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k not in ("name", "namespace")): sample.value
        for family in world.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and sample.labels.get("name") == "gemma"
    }


async def test_metrics_come_and_go_with_the_object(make: Make) -> None:
    world = await World(make).healthy()
    assert series(world, contract.METRIC_CAPACITY) == {"gear=sp2": 1000.0, "gear=tp2": 400.0}
    assert series(world, contract.METRIC_PODS) == {"state=asked": 1.0, "state=live": 1.0, "state=ready": 1.0}
    conditions = series(world, contract.METRIC_CONDITION)
    assert (conditions["condition=Ready"], conditions["condition=Degraded"]) == (1.0, 0.0)
    assert conditions["condition=SLOMet"] == -1.0
    del world.cluster.objects["Pod", "p1"]
    await world.full()
    assert series(world, contract.METRIC_CAPACITY) == {}, "no pod has measured anything"
    del world.cluster.objects["ShiftDeployment", KEY.name]
    await world.full()
    assert series(world, contract.METRIC_PODS) == {}


async def test_who_leads_no_more_shows_no_object(make: Make) -> None:
    world = await World(make).healthy()
    await world.reconciler.forget_all()
    assert series(world, contract.METRIC_PODS) == {}
