"""What is tried and looked for before a rollout touches a pod, in whole passes."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator.errors import UserError

from .conftest import Make
from .rollouts import change, replace_pods, running
from .world import World

Object = dict[str, Any]
STRICT = (
    "PATCH /apis/apps/v1/namespaces/team/deployments/gemma: failed to create typed patch object (team/gemma; apps/v1, "
    'Kind=Deployment): .spec.template.spec.containers[name="runtime"].livenes: field not declared in schema'
)


async def test_a_template_that_the_api_server_refuses_touches_no_pod(make: Make) -> None:
    world = await World(make).healthy()
    good = running(world)
    world.cluster.refusals["dry run"] = UserError("RefusedByApi", STRICT)
    change(world, podTemplate={"spec": {"containers": [{"name": "runtime", "livenes": {}}]}})
    for _ in range(3):
        await world.full()
    assert running(world) == good
    assert world.condition("Ready") == ("False", "InvalidPodTemplate")
    assert world.condition("Degraded") == ("True", "SpecRefused")
    [ready, *_] = world.cluster.resource["status"]["conditions"]
    assert 'podTemplate.spec.containers[name="runtime"].livenes: field not declared' in ready["message"]
    assert len(world.cluster.checks) == 1, "of the first start; a refused one is asked again after a while"
    assert not any("ControllerRevision" in write for write in world.cluster.writes)
    change(world, replicas=2, autoscaling={"mode": "Disabled"})
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["replicas"] == 2, "work goes on with what runs"
    world.cluster.refusals.clear()
    change(world, podTemplate={})
    await world.full()
    assert world.condition("Degraded") == ("False", "AsAsked")


async def test_a_first_template_that_is_refused_makes_nothing(make: Make) -> None:
    world = World(make)
    world.cluster.refusals["dry run"] = UserError("RefusedByApi", STRICT)
    await world.full()
    assert world.condition("Ready") == ("False", "InvalidPodTemplate")
    assert set(world.cluster.writes) == {"status"}


async def test_a_deployment_of_somebody_else_is_a_conflict_and_no_bad_template(make: Make) -> None:
    world = World(make)
    world.cluster.objects["Deployment", "gemma"] = {"kind": "Deployment", "metadata": {"name": "gemma"}, "spec": {}}
    world.cluster.refusals["dry run"] = UserError("RefusedByApi", "spec.selector: field is immutable")
    await world.full()
    assert world.condition("Ready") == ("False", "NameConflict")


async def test_a_template_that_was_tried_is_not_tried_again_while_something_else_is_in_the_way(make: Make) -> None:
    """A Service of somebody else: the Deployment was never made, and its template tried at every pass, for ever."""
    world = World(make)
    world.cluster.objects["Service", "gemma"] = {"kind": "Service", "metadata": {"name": "gemma"}, "spec": {}}
    for _ in range(5):
        await world.full()
    assert world.condition("Ready") == ("False", "NameConflict")
    assert len(world.cluster.checks) == 1
    change(world, engine={"maxNumSeqs": 7})
    await world.full()
    assert len(world.cluster.checks) == 2, "another template is"


ENV = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]


@pytest.mark.parametrize(
    ("missing", "spec", "reason"),
    [
        ("hub", {"runtime": {"image": "runtime:1", "device": "cpu", "env": ENV}}, "SecretMissing"),
        ("hub", {"model": {"uri": "hf://meta/llama", "secretRef": {"name": "hub"}}}, "SecretMissing"),
        ("nowhere", {"model": {"uri": "pvc://nowhere/m.gguf"}}, "ModelNotFound"),
        ("nowhere", {"cache": {"claimName": "nowhere"}}, "ClaimMissing"),
    ],
)
async def test_what_pods_need_must_be_there_before_one_is_replaced(
    make: Make, missing: str, spec: Object, reason: str
) -> None:
    world = await World(make).healthy()
    good = running(world)
    world.cluster.missing.add(missing)
    change(world, **spec)
    await world.full()
    assert running(world) == good
    assert world.condition("Ready") == ("False", reason)
    assert world.condition("Available") == ("True", "PodsServe")
    world.cluster.missing.clear()
    await world.full()
    assert running(world) == good, "asked again after a while only"
    world.now += 31.0
    await world.full()
    assert running(world) != good
    replace_pods(world)
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")


async def test_a_first_pod_waits_for_the_certificate_and_the_status_says_which(make: Make) -> None:
    """The kubelet says nothing of a Secret that it cannot mount."""
    world = World(make, service={"tls": {"secretName": "cert"}})
    world.cluster.missing.add("cert")
    await world.full()
    assert world.condition("Ready") == ("False", "SecretMissing")
    [said] = [c["message"] for c in world.cluster.resource["status"]["conditions"] if c["type"] == "Ready"]
    assert "Secret cert of service.tls does not exist" in said
    assert ("Deployment", "gemma") not in world.cluster.objects
    world.cluster.missing.clear()
    await world.full()
    assert ("Deployment", "gemma") in world.cluster.objects


@pytest.mark.parametrize(
    ("keys", "auth", "said"),
    [
        (("tls.crt", "tls.key"), "Required", "has no ca.crt, which clientAuth Required needs; add the certificate of"),
        (("tls.crt",), "None", "has no tls.key; add what is missing"),
        (("other",), "Required", "has no tls.crt and no tls.key and no ca.crt; add"),
        (("tls.crt", "tls.key"), "None", None),
        (("tls.crt", "tls.key", "ca.crt"), "Required", None),
        (None, "Required", None),
    ],
)
async def test_a_certificate_without_a_key_that_pods_read_is_told_before_a_pod_fails(
    make: Make, keys: tuple[str, ...] | None, auth: str, said: str | None
) -> None:
    """Pods failed one after the other, and said only that a file was not there."""
    world = World(make, service={"tls": {"secretName": "cert", "clientAuth": auth}})
    if keys is not None:
        world.cluster.keys["cert"] = keys
    await world.full()
    assert (("Deployment", "gemma") in world.cluster.objects) is (said is None)
    [told] = [c for c in world.cluster.resource["status"]["conditions"] if c["type"] == "Ready"]
    if said is not None:
        assert told["reason"] == "SecretMissing"
        assert f"Secret cert of service.tls {said}" in told["message"]


async def test_a_certificate_that_is_not_there_replaces_no_pod(make: Make) -> None:
    world = await World(make).healthy()
    good = running(world)
    world.cluster.missing.add("cert")
    change(world, service={"tls": {"secretName": "cert"}})
    await world.full()
    assert (running(world), world.condition("Ready")) == (good, ("False", "SecretMissing"))
