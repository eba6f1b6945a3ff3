"""Whole passes while the API server takes no writes of children, or the operator lacks a right to read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from shiftoperator.errors import ConflictError, TransientError
from shiftoperator.plan import Found
from shiftoperator.reconcile.memory import WRITES_FAIL_SECONDS
from shiftoperator.snapshot import Load
from shiftoperator.spec import Policy

from .conftest import Make
from .world import World, scale_path

Object = dict[str, Any]

WEBHOOK = 'PATCH /api/v1/services/gemma: 500 failed calling webhook "guard.example.com": connect: connection refused'
READS = (
    *(("get", kind) for kind in ("ServiceAccount", "Secret", "NetworkPolicy", "Service", "PodDisruptionBudget")),
    *(("get", "Deployment"), ("get", "ShiftDeployment"), ("list", "ControllerRevision"), ("list", "Pod")),
)
SCALERS = ("list", "HorizontalPodAutoscaler")
BUSY = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)


def message(world: World, type_: str) -> str:
    found = next(c for c in world.cluster.resource["status"]["conditions"] if c["type"] == type_)
    return str(found["message"])


async def failing(make: Make, error: Exception) -> World:
    """Its Service is to be made again, and cannot be."""
    world = await World(make).healthy()
    del world.cluster.objects["Service", "gemma"]
    world.cluster.refusals["Service"] = error
    with pytest.raises(TransientError):
        await world.full()
    return world


# --- writes that fail ---


async def test_a_write_that_fails_for_a_moment_is_not_told(make: Make) -> None:
    world = await failing(make, TransientError(WEBHOOK))
    world.now += WRITES_FAIL_SECONDS - 0.1
    with pytest.raises(TransientError):
        await world.full()
    assert (world.cluster.writes, world.condition("Ready")) == ([], ("True", "AllPodsReady"))
    world.cluster.refusals.clear()
    await world.full()
    world.cluster.refusals["Service"] = TransientError(WEBHOOK)
    del world.cluster.objects["Service", "gemma"]
    with pytest.raises(TransientError):
        await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady"), "what failed before has passed"


async def test_a_dead_webhook_for_one_child_does_not_silence_the_resource(make: Make) -> None:
    """Ready stayed True, no policy was stored or pushed, and no pod was asked: each try ended at the child."""
    world = await failing(make, TransientError(WEBHOOK))
    world.now += WRITES_FAIL_SECONDS
    world.runtimes.pods["uid-p1"] = world.runtimes.template
    world.cluster.resource["spec"]["shift"] = {"policy": "Throughput"}
    with pytest.raises(TransientError, match="calling webhook"):
        await world.full()
    assert world.condition("Ready") == ("False", "WriteFailing")
    assert 'webhook "guard.example.com": connect: connection refused' in message(world, "Ready")
    assert world.condition("Available") == ("True", "PodsServe")
    assert world.condition("Degraded") == ("True", "WriteFailing")
    assert world.condition("ScalingActive") == ("False", "NotDecided")
    assert world.runtimes.pods["uid-p1"].policy == Policy("Throughput")
    assert world.condition("PolicyInSync") == ("True", "Applied")


async def test_writes_that_go_on_failing_are_told_once(make: Make) -> None:
    """The words of one failure differ, by a port say; the status follows none of them."""
    world = await failing(make, TransientError(WEBHOOK))
    for attempt in range(3):
        world.now += 30.0
        world.cluster.refusals["Service"] = TransientError(WEBHOOK.replace("connect", f"read 10.0.0.1:{attempt}"))
        with pytest.raises(TransientError):
            await world.full()
    assert world.cluster.writes == ["status"]
    assert sorted(world.cluster.events) == ["NotDecided", *["WriteFailing"] * 3]
    world.cluster.refusals.clear()
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    assert world.condition("Degraded") == ("False", "AsAsked")


async def test_another_write_that_fails_is_told_in_its_own_words(make: Make) -> None:
    world = await failing(make, TransientError(WEBHOOK))
    world.now += 30.0
    world.cluster.refusals["Service"] = TransientError("PATCH /api/v1/services/other: 503 etcd is read-only")
    with pytest.raises(TransientError):
        await world.full()
    assert "etcd is read-only" in message(world, "Ready")


async def test_a_new_resource_whose_children_cannot_be_written_gets_a_status(make: Make) -> None:
    world = World(make)
    world.cluster.refusals["Service"] = TransientError(WEBHOOK)
    for _ in range(2):
        with pytest.raises(TransientError):
            await world.full()
        world.now += WRITES_FAIL_SECONDS
    assert world.condition("Ready") == ("False", "WriteFailing")
    assert world.condition("Progressing") == ("False", "WriteFailing")


async def test_a_conflict_is_told_nobody_however_long_it_lasts(make: Make) -> None:
    world = await failing(make, ConflictError("PATCH /api/v1/services/gemma: it has changed"))
    for _ in range(3):
        world.now += 30.0
        with pytest.raises(ConflictError):
            await world.full()
    assert world.cluster.writes == []


async def test_without_an_api_server_the_pass_ends_at_its_first_write(make: Make) -> None:
    world = await failing(make, TransientError(WEBHOOK))
    world.now += 30.0
    world.cluster.refusals["status"] = TransientError("no answer to the status")
    with pytest.raises(TransientError, match="no answer to the status"):
        await world.full()
    assert (world.cluster.writes, world.cluster.events) == ([], [])


# --- reads that are refused ---


async def test_these_are_the_reads_of_a_pass(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.reads.clear()
    world.now += 60.0
    await world.full()
    assert set(world.cluster.reads) == {kind for _, kind in (*READS, SCALERS)}


@pytest.mark.parametrize("right", READS, ids=" ".join)
@pytest.mark.parametrize("woken", [False, True], ids=["whole", "woken"])
async def test_a_right_that_is_taken_away_is_told(make: Make, right: tuple[str, str], woken: bool) -> None:
    """It was a trace in the log, over and over, and the status stood still."""
    world = await World(make).healthy()
    world.cluster.forbidden = {right}
    world.runtimes.pods["uid-p1"] = world.runtimes.template
    for _ in range(3):
        await (world.woken() if woken and right[1] not in _ONLY_WHOLE else world.full())
        await world.poll()
        assert world.condition("Ready") == ("False", "Forbidden")
    assert f"operator cannot {' '.join(right)}" in message(world, "Ready")
    assert world.condition("Available") == ("True", "PodsServe")
    assert world.condition("PolicyInSync") == ("True", "Applied"), "pods that run are looked after"
    assert world.cluster.writes == ["status"]
    world.cluster.forbidden = set()
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    assert world.cluster.writes == ["status", "status"]


# Read in a pass after an event too only where something else is refused.
_ONLY_WHOLE = {"ServiceAccount", "Secret", "NetworkPolicy", "Service", "PodDisruptionBudget", "ControllerRevision"}


async def test_of_several_rights_that_lack_the_same_is_told_every_time(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.forbidden = set(READS[:4])
    for _ in range(3):
        await world.full()
    assert world.cluster.writes == ["status"]


@pytest.mark.parametrize("right", READS, ids=" ".join)
async def test_a_new_operator_says_what_it_may_not_read_and_takes_nothing_back(
    make: Make, right: tuple[str, str]
) -> None:
    """What it has not seen is neither gone nor there."""
    world = await World(make).healthy()
    before = copy.deepcopy(world.cluster.resource["status"])
    world.restart_operator()
    world.cluster.forbidden = {right}
    for _ in range(2):
        await world.full()
        await world.poll()
    assert world.condition("Ready") == ("False", "Forbidden")
    assert (world.cluster.writes, world.cluster.resource["status"]["replicas"]) == (["status"], 1)
    told = {"Ready", "Progressing", "ScalingActive", "Paused"}
    assert without(world.cluster.resource["status"], told) == without(before, told)
    world.cluster.forbidden = set()
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")


async def test_a_policy_that_a_new_operator_stores_outlives_what_it_may_not_read(make: Make) -> None:
    """The status from before the pass was told again, and the generation turned back with it."""
    world = await World(make).healthy()
    before = world.cluster.resource["status"]["policyGeneration"]
    world.restart_operator()
    world.cluster.forbidden = {("list", "Pod")}
    world.cluster.resource["spec"]["shift"] = {"policy": "Latency"}
    world.cluster.resource["metadata"]["generation"] += 1
    await world.full()
    told = world.cluster.resource["status"]
    assert (told["policyGeneration"], told["policy"]["mode"]) == (before + 1, "Latency")
    assert world.condition("Ready") == ("False", "Forbidden")


def without(status: Object, types: set[str]) -> Object:
    return {**status, "conditions": [c for c in status["conditions"] if c["type"] not in types]}


@pytest.mark.parametrize("right", READS, ids=" ".join)
async def test_a_right_that_was_forgotten_is_told_in_a_new_resource(make: Make, right: tuple[str, str]) -> None:
    world = World(make)
    world.cluster.forbidden = {right}
    await world.full()
    assert world.condition("Ready") == ("False", "Forbidden")
    assert set(world.cluster.writes) == {"status"}, "no child is made without knowing what is there"


async def test_what_an_object_of_the_same_name_had_is_not_taken_for_what_may_not_be_read(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.resource["metadata"]["uid"] = "uid-of-another"
    world.cluster.resource.pop("status")
    world.cluster.forbidden = {("list", "Pod")}
    await world.full()
    assert world.condition("Ready") == ("False", "Forbidden")
    assert "replicas" not in world.cluster.resource["status"]


async def test_a_resource_that_may_not_be_read_alone_is_found_in_the_list_or_gone(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.forbidden = {("get", "ShiftDeployment")}
    assert await world.full() is not Found.GONE
    del world.cluster.objects["ShiftDeployment", "gemma"]
    assert await world.full() is Found.GONE


async def test_the_autoscaler_stands_still_while_nobody_knows_who_else_scales(make: Make) -> None:
    """It was a trace in the log, and no child was made, for want of a right that only the autoscaler needs."""
    world = await World(make).healthy()
    world.cluster.forbidden = {SCALERS}
    assert await scale_path(world, BUSY, 40) == [1] * 40
    assert world.condition("Ready") == ("True", "AllPodsReady")
    assert world.condition("ScalingActive") == ("False", "Forbidden")
    assert "operator cannot list HorizontalPodAutoscaler" in message(world, "ScalingActive")
    world.cluster.forbidden = set()
    assert (await scale_path(world, BUSY, 40))[-1] == 2
