"""Whole passes through a rollout that fails: when it is taken back, and what ends that."""

from __future__ import annotations

from dataclasses import replace

from shiftoperator.snapshot import Phase

from .conftest import Make
from .rollouts import CRASH, change, replace_pods, rolled_back, running
from .world import World


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


async def test_a_rollback_survives_a_restart_of_the_operator_and_costs_nothing_at_rest(make: Make) -> None:
    world = await rolled_back(make, engine={"maxNumSeqs": 99})
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
    world = await rolled_back(make, engine={"maxNumSeqs": 99})
    good = running(world)
    stored = ("ControllerRevision", f"gemma-{good}")
    before = world.cluster.objects.pop(stored)
    await world.full()
    assert running(world) == good
    assert world.condition("Ready") == ("False", "RolledBack")
    assert world.cluster.objects[stored]["data"] == before["data"]
    assert world.cluster.writes == ["apply ControllerRevision/gemma-" + good]


async def test_a_new_spec_ends_the_rollback(make: Make) -> None:
    world = await rolled_back(make, engine={"maxNumSeqs": 99})
    change(world, engine={"maxNumSeqs": 32})
    await world.full()
    replace_pods(world)
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    told = world.cluster.resource["status"]["rollout"]
    assert told == {"goodRevision": running(world)}


async def test_going_back_to_the_good_spec_heals_without_a_restart(make: Make) -> None:
    world = await rolled_back(make, engine={"maxNumSeqs": 99})
    change(world, engine={"maxNumSeqs": 16, "maxBatchedTokens": 512})
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    assert not [write for write in world.cluster.writes if write.startswith("apply")]


async def test_the_size_of_a_service_that_was_rolled_back_can_change(make: Make) -> None:
    world = await rolled_back(make, engine={"maxNumSeqs": 99})
    before = running(world)
    change(world, replicas=3, autoscaling={"mode": "Disabled"})
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["replicas"] == 3
    assert running(world) == before


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


async def none_serves(make: Make, start_seconds: float) -> tuple[World, str, str]:
    """After a start that took so long the only pod made room for another revision; the hashes of both."""
    world = World(make, autoscaling={"mode": "Disabled"})
    world.runtimes.template = replace(world.runtimes.template, phases=(Phase("load", start_seconds, 1, True),))
    await world.healthy()
    good = running(world)
    change(world, engine={"maxNumSeqs": 99})
    await world.full()
    bad = running(world)
    del world.cluster.objects["Pod", "p1"]
    return world, good, bad


async def test_the_time_of_a_start_is_known_while_nobody_serves(make: Make) -> None:
    """It was dropped by the first pass without a ready pod: a revision without a node never got more than a minute."""
    world, good, bad = await none_serves(make, start_seconds=300.0)
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


async def test_a_failure_days_after_a_rollout_that_lacked_room_for_one_pod_rolls_nothing_back(make: Make) -> None:
    """The revision was on trial for as long as the last pod had no node: then one crash took back the whole service."""
    world = World(make, replicas=2, autoscaling={"mode": "Disabled"})
    await world.full()
    for name in ("p1", "p2"):
        world.cluster.add_pod(name, running(world))
    await world.full()
    good = running(world)
    assert world.cluster.resource["status"]["rollout"]["goodRevision"] == good
    change(world, engine={"maxNumSeqs": 99})
    await world.full()
    bad = running(world)
    for name, successor in (("p1", "q1"), ("p2", "q2")):
        del world.cluster.objects["Pod", name]
        world.cluster.add_pod(successor, bad)
    waits = world.cluster.objects["Pod", "q2"]
    waits["metadata"]["creationTimestamp"] = "1970-01-01T00:01:40Z"
    waits["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
    for seconds, proved in ((0, good), (119, good), (120, bad)):
        world.now = 100.0 + seconds
        await world.full()
        assert world.cluster.resource["status"]["rollout"]["goodRevision"] == proved, seconds
    world.now += 5 * 86400
    world.cluster.objects["Pod", "q1"]["status"] |= {
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "runtime", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}],
    }
    await world.full()
    assert running(world) == bad
    assert "rejected" not in world.cluster.resource["status"]["rollout"]


async def test_a_start_that_hangs_while_nobody_serves_is_taken_back_long_before_the_deadline(make: Make) -> None:
    """With one replica the service was away for half an hour, whatever its starts take."""
    world, good, bad = await none_serves(make, start_seconds=100.0)
    world.cluster.add_pod("q1", bad)
    began = "1970-01-01T00:01:40Z"
    world.cluster.objects["Pod", "q1"]["status"] |= {
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False", "lastTransitionTime": began},
        ],
        "containerStatuses": [{"name": "runtime", "state": {"running": {"startedAt": began}}}],
    }
    story = [(0, 0, bad), (299, 1, bad), (598, 2, bad), (897, 2, bad), (898, 2, good)]
    for seconds, num_bytes, runs in story:
        world.now = 100.0 + seconds
        loads = Phase("load", float(seconds), num_bytes, False, 9)
        world.runtimes.pods["uid-q1"] = replace(world.runtimes.template, phases=(loads,))
        await world.poll()
        await world.full()
        assert running(world) == runs, seconds
    rejected = world.cluster.resource["status"]["rollout"]["rejected"]
    assert rejected["reason"] == "ProgressDeadlineExceeded"
    assert "start of pod q1 has got no farther for 300 s while no pod serves" in rejected["message"]
