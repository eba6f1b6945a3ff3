"""Passes after an event: they read what changes by itself, and of the rest know what they wrote."""

from __future__ import annotations

import pytest
from shiftoperator.errors import TransientError
from shiftoperator.plan import Found

from .conftest import Make
from .world import World

CHANGES_BY_ITSELF = ["Deployment", "Pod", "ShiftDeployment"]


async def test_an_event_costs_three_reads(make: Make) -> None:
    world = await World(make).healthy()
    await world.woken()
    assert sorted(world.cluster.reads) == CHANGES_BY_ITSELF
    assert world.cluster.writes == []


async def test_a_change_of_the_spec_is_applied_once(make: Make) -> None:
    """What the pass wrote is known to the next one, which did not read it."""
    world = await World(make).healthy()
    world.cluster.resource["spec"]["disruption"] = {"maxUnavailable": 2}
    world.cluster.resource["metadata"]["generation"] += 1
    for _ in range(3):
        await world.woken()
        assert sorted(world.cluster.reads) == CHANGES_BY_ITSELF
    assert world.cluster.writes.count("apply PodDisruptionBudget/gemma") == 1
    assert world.cluster.objects["PodDisruptionBudget", "gemma"]["spec"]["maxUnavailable"] == 2


async def test_a_new_revision_is_stored_once_and_old_ones_deleted_once(make: Make) -> None:
    world = await World(make).healthy()
    for number in range(8):
        world.cluster.resource["spec"]["engine"] = {"maxNumSeqs": 20 + number}
        world.cluster.resource["metadata"]["generation"] += 1
        for _ in range(3):
            await world.woken()
    revisions = [write for write in world.cluster.writes if "ControllerRevision" in write]
    assert len(revisions) == len(set(revisions)), "nothing is made or deleted twice"
    assert any(write.startswith("delete") for write in revisions)


async def test_what_somebody_took_away_is_made_again_by_the_next_whole_pass(make: Make) -> None:
    world = await World(make).healthy()
    del world.cluster.objects["Service", "gemma"]
    await world.woken()
    assert world.cluster.writes == []
    await world.full()
    assert world.cluster.writes == ["apply Service/gemma"]


async def test_a_deployment_that_somebody_took_away_is_made_again_at_once(make: Make) -> None:
    world = await World(make).healthy()
    del world.cluster.objects["Deployment", "gemma"]
    await world.woken()
    assert world.cluster.writes[0] == "apply Deployment/gemma"


async def test_children_collected_between_two_reads_are_not_made_again(make: Make) -> None:
    """The resource is read beside its Deployment: it may go, with all that is its own, between the two."""
    world = await World(make).healthy()
    world.cluster.after_read["ShiftDeployment"] = world.cluster.objects.clear
    assert await world.woken() is Found.GONE
    assert world.cluster.writes == []


async def test_after_a_write_without_an_answer_everything_is_read(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.resource["spec"]["disruption"] = {"maxUnavailable": 2}
    world.cluster.resource["metadata"]["generation"] += 1
    world.cluster.refusals["PodDisruptionBudget"] = TransientError("no answer")
    with pytest.raises(TransientError):
        await world.woken()
    del world.cluster.refusals["PodDisruptionBudget"]
    await world.woken()
    assert "Secret" in world.cluster.reads
    assert world.cluster.objects["PodDisruptionBudget", "gemma"]["spec"]["maxUnavailable"] == 2


async def test_another_resource_of_that_name_gets_children_of_its_own(make: Make) -> None:
    """Deleted and made again between two events: what was known belonged to the one before."""
    world = await World(make).healthy()
    for identity in [which for which in world.cluster.objects if which[0] not in ("ShiftDeployment", "Event")]:
        del world.cluster.objects[identity]
    world.cluster.resource["metadata"]["uid"] = "another"
    world.cluster.resource["status"] = {}
    await world.woken()
    assert "create Secret/gemma-control" in world.cluster.writes
    owners = world.cluster.objects["Service", "gemma"]["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == ["another"]


async def test_a_resource_that_is_gone_is_forgotten(make: Make) -> None:
    world = await World(make).healthy()
    del world.cluster.objects["ShiftDeployment", "gemma"]
    assert await world.woken() is Found.GONE
