"""Whole passes through a rollout that fails, is refused, or is held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shiftoperator import manifests
from shiftoperator.errors import UserError
from shiftoperator.snapshot import Phase

from .conftest import Make
from .world import World

Object = dict[str, Any]
STRICT = (
    "PATCH /apis/apps/v1/namespaces/team/deployments/gemma: failed to create typed patch object (team/gemma; apps/v1, "
    'Kind=Deployment): .spec.template.spec.containers[name="runtime"].livenes: field not declared in schema'
)


def running(world: World) -> str:
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


async def test_a_bad_revision_is_rolled_back_and_the_spec_stays(make: Make) -> None:
    world = await World(make).healthy()
    good = running(world)
    change(world, engine={"maxNumSeqs": 99})
    await world.full()
    bad = running(world)
    assert bad != good
    replace_pods(world, CRASH)
    world.cluster.writes.clear()
    await world.full()
    assert world.cluster.writes[:2] == ["status", "apply Deployment/gemma"], "stored before it is done"
    assert world.cluster.statuses[-2]["rollout"]["rejected"]["revision"] == bad
    assert running(world) == good == world.cluster.resource["status"]["templateHash"]
    assert world.cluster.resource["spec"]["engine"] == {"maxNumSeqs": 99}
    assert world.condition("Ready") == ("False", "RolledBack")
    assert world.condition("Progressing") == ("True", "RolledBack")
    [ready, *_] = world.cluster.resource["status"]["conditions"]
    assert f"revision {bad} failed" in ready["message"]
    assert f"run revision {good}" in ready["message"]
    assert "ModelNotFound: pod " in ready["message"]
    assert "RolledBack" in world.cluster.events
    replace_pods(world)
    await world.full()
    assert world.condition("Available") == ("True", "PodsServe")
    assert world.condition("Ready") == ("False", "RolledBack")
    assert world.condition("Degraded") == ("True", "RolledBack")
    assert world.condition("Progressing") == ("False", "RolledBack")


async def rolled_back(make: Make) -> World:
    world = await World(make).healthy()
    change(world, engine={"maxNumSeqs": 99})
    await world.full()
    replace_pods(world, CRASH)
    await world.full()
    replace_pods(world)
    await world.full()
    await world.full()
    world.cluster.writes.clear()
    world.cluster.events.clear()
    return world


async def test_a_rollback_survives_a_restart_of_the_operator_and_costs_nothing_at_rest(make: Make) -> None:
    world = await rolled_back(make)
    before, checks = running(world), list(world.cluster.checks)
    for restart in (False, True, True):
        if restart:
            world.restart_operator()
        await world.full()
        await world.poll()
    assert running(world) == before
    assert (world.cluster.writes, world.cluster.events, world.cluster.checks) == ([], [], checks)
    assert world.condition("Ready") == ("False", "RolledBack")


async def test_a_rejection_outlives_the_stored_template_of_the_good_revision(make: Make) -> None:
    """Somebody deleted the ControllerRevision: the rejection was dropped, and the bad revision rolled out again."""
    world = await rolled_back(make)
    good = running(world)
    stored = ("ControllerRevision", f"gemma-{good}")
    before = world.cluster.objects.pop(stored)
    await world.full()
    assert running(world) == good
    assert world.condition("Ready") == ("False", "RolledBack")
    assert world.cluster.objects[stored]["data"] == before["data"]
    assert world.cluster.writes == ["apply ControllerRevision/gemma-" + good]


async def test_a_new_spec_ends_the_rollback(make: Make) -> None:
    world = await rolled_back(make)
    change(world, engine={"maxNumSeqs": 32})
    await world.full()
    replace_pods(world)
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    told = world.cluster.resource["status"]["rollout"]
    assert told == {"goodRevision": running(world)}


async def test_going_back_to_the_good_spec_heals_without_a_restart(make: Make) -> None:
    world = await rolled_back(make)
    change(world, engine={"maxNumSeqs": 16, "maxBatchedTokens": 512})
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    assert not [write for write in world.cluster.writes if write.startswith("apply")]


async def test_the_size_of_a_service_that_was_rolled_back_can_change(make: Make) -> None:
    world = await rolled_back(make)
    before = running(world)
    change(world, replicas=3, autoscaling={"mode": "Disabled"})
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["replicas"] == 3
    assert running(world) == before


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


async def test_a_hiccup_of_the_registry_after_a_long_pull_rejects_nothing(make: Make) -> None:
    """The 30 s were counted from the pod's start: one refusal after five minutes of pulling rejected the revision."""
    world = World(make, autoscaling={"mode": "Disabled"})
    await world.healthy()
    good = running(world)
    change(world, engine={"maxNumSeqs": 99})
    await world.full()
    bad = running(world)
    replace_pods(world)
    [pulls] = [obj for (kind, _), obj in world.cluster.objects.items() if kind == "Pod"]
    stamp = {"lastTransitionTime": "1970-01-01T00:01:40Z"}
    pulls["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False", **stamp}
    ]  # fmt: skip
    creating = "ContainerCreating"
    story = [
        (0, creating, bad), (300, "ErrImagePull", bad), (329, "ImagePullBackOff", bad), (331, creating, bad),
        (340, "ErrImagePull", bad), (369, "ImagePullBackOff", bad), (370, "ErrImagePull", good),
    ]  # fmt: skip
    for seconds, reason, runs in story:
        world.now = 100.0 + seconds
        pulls["status"]["containerStatuses"] = [{"name": "runtime", "state": {"waiting": {"reason": reason}}}]
        await world.full()
        assert running(world) == runs, seconds


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


async def test_the_time_of_a_start_is_known_while_nobody_serves(make: Make) -> None:
    """It was dropped by the first pass without a ready pod: a revision without a node never got more than a minute."""
    world = World(make, autoscaling={"mode": "Disabled"})
    world.runtimes.template = replace(world.runtimes.template, phases=(Phase("load", 300.0, 1, True),))
    await world.healthy()
    good = running(world)
    change(world, engine={"maxNumSeqs": 99})
    await world.full()
    bad = running(world)
    del world.cluster.objects["Pod", "p1"]
    await world.full()
    world.cluster.add_pod("q1", bad)
    waits = world.cluster.objects["Pod", "q1"]
    waits["metadata"]["creationTimestamp"] = "1970-01-01T00:01:40Z"
    waits["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
    for seconds, runs in ((0, bad), (130, bad), (300 + 59, bad), (300 + 60, good)):
        world.now = 100.0 + seconds
        await world.full()
        assert world.cluster.resource["status"]["slowestStart"]["seconds"] == 300
        assert running(world) == runs, seconds
    assert world.cluster.resource["status"]["rollout"]["rejected"]["reason"] == "Unschedulable"


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


def protocols(world: World) -> set[str]:
    """Of both Services' ports for clients."""
    services = [world.cluster.objects["Service", name] for name in ("gemma", "gemma-headless")]
    return {port["appProtocol"] for service in services for port in service["spec"]["ports"]}


PLAIN, TLS = {"http", "kubernetes.io/h2c"}, {"https"}


async def test_a_service_says_what_the_pods_that_serve_speak_while_they_are_replaced(make: Make) -> None:
    """It followed the spec at once, and mesh and load balancer spoke TLS to pods that did not."""
    world = await World(make, replicas=3).healthy()
    for name in ("p2", "p3"):
        world.cluster.add_pod(name, running(world))
    await world.full()
    old = running(world)
    change(world, service={"tls": {"secretName": "cert"}})
    await world.full()
    assert running(world) != old
    assert protocols(world) == PLAIN, "not one pod of it is there"
    said = []
    for name in ("p1", "p2", "p3"):
        world.cluster.add_pod(name, running(world))
        await world.full()
        said.append(protocols(world))
    assert said == [PLAIN, TLS, TLS], "as most pods do"


async def test_a_service_says_what_pods_speak_that_were_rolled_back(make: Make) -> None:
    world = await World(make).healthy()
    change(world, service={"tls": {"secretName": "cert"}})
    await world.full()
    replace_pods(world, CRASH)
    await world.full()
    replace_pods(world)
    await world.full()
    await world.full()
    assert world.condition("Ready") == ("False", "RolledBack")
    assert protocols(world) == PLAIN


async def test_a_service_without_pods_says_what_the_first_ones_will_speak(make: Make) -> None:
    world = World(make, service={"tls": {"secretName": "cert"}})
    await world.full()
    assert protocols(world) == TLS


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
