"""Token, keys and certificates of the control port in whole passes: made once, kept, rotated when asked."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from .conftest import Make
from .world import World


async def test_the_token_is_made_once(make: Make) -> None:
    world = await World(make).healthy()
    token = world.cluster.objects["Secret", "gemma-control"]["data"]["token"]
    await world.full()
    assert world.cluster.objects["Secret", "gemma-control"]["data"]["token"] == token
    del world.cluster.objects["Secret", "gemma-control"]
    await world.full()
    assert world.cluster.writes == ["create Secret/gemma-control"]


async def test_a_key_is_made_only_where_there_is_none(make: Make) -> None:
    """A write that its caller gave up on may arrive late: applied, it would replace the key that pods have by then."""
    world = World(make)
    await world.full()
    assert [write for write in world.cluster.writes if "Secret" in write] == [
        "create Secret/gemma-control-ca",
        "create Secret/gemma-control",
    ]


async def test_certificates_are_rotated_when_asked_and_keys_are_kept_otherwise(make: Make) -> None:
    world = await World(make).healthy()
    authority = world.cluster.objects["Secret", "gemma-control-ca"]["data"]
    kept = {key: authority[key] for key in ("authority.key", "client.key", "tls.key")}
    annotations = world.cluster.resource["metadata"].setdefault("annotations", {})
    annotations["shiftparallel.dev/rotate-control-certificates"] = "2020-01-01T00:00:00Z"
    await world.full()
    assert world.cluster.writes == [], "the authority is younger than that"
    annotations["shiftparallel.dev/rotate-control-certificates"] = datetime.now(UTC).isoformat()
    await world.full()
    assert sorted(world.cluster.writes) == ["apply Secret/gemma-control", "apply Secret/gemma-control-ca"]
    data = world.cluster.objects["Secret", "gemma-control-ca"]["data"]
    assert {key: data[key] for key in kept} == kept, "the next one is trusted first, and nothing else changes"
    assert data["next.key"]
    world.cluster.writes.clear()
    for _ in range(3):
        await world.full()
    assert world.cluster.writes == []


@pytest.mark.parametrize("said", ["now", "2026-01-01T00:00:00", "", "x" * 200_000])
async def test_a_rotation_asked_for_at_no_time_is_told_and_stops_nothing_else(make: Make, said: str) -> None:
    """Free text on the metadata held up children, rollouts and the autoscaler of its resource."""
    world = await World(make).healthy()
    annotations = world.cluster.resource["metadata"].setdefault("annotations", {})
    annotations["shiftparallel.dev/rotate-control-certificates"] = said
    world.cluster.resource["spec"]["replicas"] = 2
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["replicas"] == 2
    assert not [write for write in world.cluster.writes if "Secret" in write], "nothing is rotated"
    assert world.condition("Ready") == ("True", "ScalingOut")
    assert world.condition("ScalingActive")[1] != "NotDecided"
    assert world.condition("Degraded") == ("True", "RotationIgnored")
    assert world.cluster.events.count("RotationIgnored") == 1
    [told] = [c["message"] for c in world.cluster.resource["status"]["conditions"] if c["type"] == "Degraded"]
    assert "rotate-control-certificates" in told
    assert len(told) < 300
    world.cluster.writes.clear()
    await world.full()
    assert world.cluster.writes == []
    del annotations["shiftparallel.dev/rotate-control-certificates"]
    await world.full()
    assert world.condition("Degraded") == ("False", "AsAsked")


async def test_a_rotation_asked_for_at_no_time_is_told_while_no_pod_is_asked_for(make: Make) -> None:
    world = World(make, replicas=0)
    world.cluster.resource["metadata"]["annotations"] = {"shiftparallel.dev/rotate-control-certificates": "soon"}
    await world.full()
    assert world.condition("Ready") == ("True", "ScaledToZero")
    assert world.condition("Degraded") == ("True", "RotationIgnored")
