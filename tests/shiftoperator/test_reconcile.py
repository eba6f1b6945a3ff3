"""Whole passes from a resource to pods that serve, and through what changes meanwhile."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from shiftoperator import manifests
from shiftoperator.errors import ConflictError
from shiftoperator.plan import Found
from shiftoperator.snapshot import Load
from shiftoperator.spec import Policy

from .conftest import Make
from .world import World, scale_path

Object = dict[str, Any]


async def test_from_resource_to_ready(make: Make) -> None:
    world = await World(make).healthy()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    assert world.condition("PolicyInSync") == ("True", "Applied")
    assert world.cluster.resource["status"]["policyGeneration"] == 1
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 64)


async def test_at_rest_nothing_is_written(make: Make) -> None:
    world = await World(make).healthy()
    for _ in range(3):
        await world.full()
        await world.poll()
    assert (world.cluster.writes, world.cluster.events) == ([], [])


async def test_a_new_policy_goes_from_the_event_to_the_pods(make: Make) -> None:
    world = await World(make).healthy()
    world.runtimes.journal = world.cluster.writes
    world.cluster.resource["spec"]["shift"] = {"policy": "Throughput"}
    world.cluster.resource["metadata"]["generation"] += 1
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert world.cluster.writes[:2] == ["status", "push 2"], "stored before it is pushed, and nothing before that"
    assert not any(write.startswith("apply") for write in world.cluster.writes), "no pod is touched"
    assert world.cluster.statuses[-2]["policyGeneration"] == 2
    assert world.runtimes.pods["uid-p1"].policy == Policy("Throughput")
    assert "PolicyAccepted" in world.cluster.events
    assert world.condition("PolicyInSync") == ("True", "Applied")


async def test_a_restarted_pod_gets_the_policy_again(make: Make) -> None:
    world = await World(make).healthy()
    world.runtimes.pods["uid-p1"] = world.runtimes.template
    await world.poll()
    assert world.runtimes.pods["uid-p1"].generation_accepted == 1
    assert world.cluster.resource["status"]["policyGeneration"] == 1


async def test_a_pod_that_was_never_seen_leaving_keeps_no_channel(make: Make) -> None:
    """Each left one behind, 3 MiB a minute under many changes of replicas."""
    world = await World(make).healthy()
    assert "uid-p1" in world.runtimes.pods
    del world.cluster.objects["Pod", "p1"]
    await world.full()
    assert "uid-p1" not in world.runtimes.pods


async def test_lost_status_outdoes_what_pods_know(make: Make) -> None:
    world = await World(make).healthy()
    world.runtimes.pods["uid-p1"] = replace(world.runtimes.pods["uid-p1"], generation_accepted=9, policy=Policy())
    await world.full()
    assert world.cluster.resource["status"]["policyGeneration"] == 10
    assert world.runtimes.pods["uid-p1"].generation_applied == 10
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 64)


async def test_back_in_the_lead_nothing_old_counts(make: Make) -> None:
    """In between another leader stored a later generation, and the load was another."""
    world = await World(make).healthy()
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)
    await scale_path(world, burst, 2)
    await world.reconciler.forget_all()
    assert world.runtimes.closed
    world.cluster.resource["spec"]["shift"] = {"policy": "Latency"}
    world.cluster.resource["metadata"]["generation"] += 1
    policy = {"mode": "Latency"}
    world.cluster.resource["status"] |= {"policyGeneration": 7, "policy": policy}
    world.runtimes.pods["uid-p1"] = replace(
        world.runtimes.pods["uid-p1"], policy=Policy("Latency"), generation_accepted=7, generation_applied=7
    )
    world.now += 60.0
    assert await scale_path(world, burst, 1) == [1], "the window begins anew"
    world.cluster.writes.clear()
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert world.cluster.resource["status"]["policyGeneration"] == 7
    assert world.runtimes.pods["uid-p1"].generation_accepted == 7


async def test_children_collected_during_the_look_are_not_made_again(make: Make) -> None:
    world = await World(make).healthy()
    get, writes = world.cluster.get, len(world.cluster.writes)

    async def deleted_meanwhile(kind: str, namespace: str, name: str) -> Object | None:
        if kind != "ShiftDeployment":
            # The garbage collector comes after the resource is gone.
            world.cluster.objects = {}
        return await get(kind, namespace, name)

    world.cluster.get = deleted_meanwhile  # type: ignore[method-assign]
    assert await world.full() is Found.GONE
    assert world.cluster.writes[writes:] == []


def limit_requests(resource: Object) -> None:
    resource["spec"]["engine"] = {"maxNumSeqs": 8}
    resource["metadata"]["generation"] += 1


async def test_a_spec_changed_during_a_pass_is_not_mixed_with_the_one_before(make: Make) -> None:
    """The revision that was named after the new spec and filled from the old one stayed: the change never came."""
    world = World(make)
    await world.full()
    world.cluster.add_pod("p1", world.cluster.resource["status"]["templateHash"])
    world.cluster.meanwhile = limit_requests
    await world.full()
    resource = world.cluster.resource
    assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"] - 1
    await world.poll()
    assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
    wanted = manifests.template_hash(world.cluster.resource["spec"])
    revisions = {
        revision["metadata"]["annotations"]["shiftparallel.dev/template-hash"]: revision["data"]["template"]
        for (kind, _), revision in world.cluster.objects.items()
        if kind == "ControllerRevision"
    }
    arguments = revisions[wanted]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--max-num-seqs") + 1] == "8"
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["template"] == revisions[wanted]


async def test_a_pass_ends_when_a_write_shows_that_deletion_began(make: Make) -> None:
    world = World(make)
    await world.full()
    world.cluster.add_pod("p1", world.cluster.resource["status"]["templateHash"])
    del world.cluster.objects["Service", "gemma"]
    world.cluster.writes.clear()
    world.cluster.meanwhile = lambda resource: resource["metadata"].update(deletionTimestamp="2026-11-21T20:00:00Z")
    with pytest.raises(ConflictError):
        await world.full()
    assert world.cluster.writes == ["status"], "nothing is made for what is on its way out"
    assert await world.full() is Found.GONE


async def test_gone(make: Make) -> None:
    world = await World(make).healthy()
    del world.cluster.objects["ShiftDeployment", "gemma"]
    assert await world.full() is Found.GONE
    assert world.runtimes.pods == {}
