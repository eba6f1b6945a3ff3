"""Policies by the clock, in whole passes; what a window is, tests/shiftcore/test_schedules.py has."""

from __future__ import annotations

import copy
import re
import zoneinfo
from dataclasses import replace
from typing import Any

import pytest
from shiftoperator import spec as specs
from shiftoperator.errors import InvalidSpecError
from shiftoperator.snapshot import Load
from shiftoperator.spec import Policy

from .conftest import Make
from .world import World

Object = dict[str, Any]
# The world begins at 100 s after midnight.
NIGHT: Object = {"name": "night", "start": "00:05", "end": "01:00", "policy": "Throughput"}
BEGIN, END = 300.0, 3600.0
BUSY = Load(running_requests=16, max_running_requests=16)
DISABLED = {"mode": "Disabled"}


def scheduled(*schedules: Object, **shift: Any) -> Object:
    return {"policy": "Auto", "thresholdTokens": 64, "schedules": copy.deepcopy(list(schedules)), **shift}


async def serving(make: Make, *schedules: Object, **spec: Any) -> World:
    shift = scheduled(*(schedules or (NIGHT,)), **spec.pop("shift", {}))
    return await World(make, **{"shift": shift, "autoscaling": DISABLED, **spec}).healthy()


def told(world: World) -> Object:
    status: Object = world.cluster.resource["status"]
    return status


def policy(world: World) -> tuple[str, int]:
    return told(world)["policy"]["mode"], told(world)["policyGeneration"]


def message(world: World) -> str:
    [said] = [c["message"] for c in told(world)["conditions"] if c["type"] == "PolicyInSync"]
    return str(said)


async def test_a_window_comes_and_goes_by_the_operators_own_clock(make: Make) -> None:
    world = await serving(make)
    assert told(world)["schedule"] == {"until": "1970-01-01T00:05:00Z", "next": "night"}
    for now, expected in ((BEGIN - 1, ("Auto", 1)), (BEGIN, ("Throughput", 2)), (END - 1, ("Throughput", 2))):
        world.now = now
        await world.poll()
        assert policy(world) == expected, now
    assert world.runtimes.pods["uid-p1"].policy == Policy("Throughput")
    assert told(world)["schedule"] == {"name": "night", "policy": "Throughput", "until": "1970-01-01T01:00:00Z"}
    assert message(world).endswith("generation 2; schedule night holds until 1970-01-01T01:00:00Z")
    world.now = END
    await world.poll()
    assert policy(world) == ("Auto", 3)
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 64)
    assert told(world)["schedule"] == {"until": "1970-01-02T00:05:00Z", "next": "night"}
    assert world.cluster.events.count("PolicyAccepted") == 2


async def test_nothing_is_written_between_two_borders(make: Make) -> None:
    world = await serving(make)
    for now in (BEGIN, END):
        world.now = now
        await world.full()
        world.cluster.writes.clear()
        for later in (1, 60, 3000):
            world.now = now + later if now == END else min(now + later, END - 1)
            await world.poll()
            await world.full()
        assert world.cluster.writes == [], now


async def test_a_border_stores_the_generation_before_it_pushes(make: Make) -> None:
    world = await serving(make)
    world.runtimes.journal = world.cluster.writes
    world.now = BEGIN
    await world.poll()
    assert world.cluster.writes[:2] == ["status", "push 2"]
    assert world.cluster.statuses[-2]["policyGeneration"] == 2


async def test_pods_that_know_a_later_generation_get_a_later_one_at_a_border(make: Make) -> None:
    world = await serving(make)
    world.runtimes.pods["uid-p1"] = replace(world.runtimes.pods["uid-p1"], generation_accepted=9)
    world.now = BEGIN
    await world.poll()
    assert policy(world) == ("Throughput", 10)
    assert world.runtimes.pods["uid-p1"].policy == Policy("Throughput")
    assert world.runtimes.pods["uid-p1"].generation_applied == 10


async def test_another_operator_goes_on_in_the_window(make: Make) -> None:
    world = await serving(make)
    world.now = BEGIN
    await world.full()
    world.restart_operator()
    await world.full()
    assert policy(world) == ("Throughput", 2), "not pushed anew"
    world.restart_operator()
    world.now = END + 5
    await world.full()
    assert policy(world) == ("Auto", 3), "also when nobody looked at the border"


async def test_a_policy_that_the_user_changes_in_a_window_comes_after_it(make: Make) -> None:
    world = await serving(make)
    world.now = BEGIN
    await world.full()
    world.cluster.resource["spec"]["shift"]["policy"] = "Latency"
    world.cluster.resource["metadata"]["generation"] += 1
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert policy(world) == ("Throughput", 2)
    world.now = END
    await world.poll()
    assert policy(world) == ("Latency", 3)


async def test_a_schedule_that_is_taken_away_ends_at_once(make: Make) -> None:
    world = await serving(make)
    world.now = BEGIN
    await world.full()
    del world.cluster.resource["spec"]["shift"]["schedules"]
    world.cluster.resource["metadata"]["generation"] += 1
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert policy(world) == ("Auto", 3)
    assert "schedule" not in told(world)


async def test_a_window_has_its_own_threshold(make: Make) -> None:
    world = await serving(make, {**NIGHT, "policy": "Auto", "thresholdTokens": 512}, {**NIGHT, "name": "second"})
    world.now = BEGIN
    await world.poll()
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 512)
    assert told(world)["schedule"]["name"] == "night", "the first of two that overlap"
    world = await serving(make, {**NIGHT, "policy": "Auto"})
    world.now = BEGIN
    await world.poll()
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto"), "left out: that of the pods, not of spec.shift"


# --- beside what else sets a policy ---


async def test_pods_away_do_not_outdo_a_window_that_pins(make: Make) -> None:
    world = await serving(make, {**NIGHT, "policy": "Latency"}, replicas=2)
    world.now = BEGIN
    world.runtimes.pods["uid-p1"] = replace(world.runtimes.pods["uid-p1"], load=BUSY)
    await world.full()
    assert policy(world)[0] == "Latency", "one of two pods serves, and is busy"


async def test_pods_away_outdo_a_window_of_auto(make: Make) -> None:
    world = await serving(make, {**NIGHT, "policy": "Auto"}, replicas=2)
    world.now = BEGIN
    world.runtimes.pods["uid-p1"] = replace(world.runtimes.pods["uid-p1"], load=BUSY)
    await world.full()
    await world.full()
    assert policy(world)[0] == "Throughput"
    assert "schedule night holds" in message(world)
    assert "Throughput in place of Auto, while pods are away" in message(world)


async def test_a_throughput_window_does_not_go_on_as_a_bias(make: Make) -> None:
    """While a pod was away, the end of the window looked like a bias that calm had not ended yet."""
    world = await serving(make, replicas=2)
    world.now = BEGIN
    await world.full()
    assert policy(world)[0] == "Throughput"
    world.now = END
    await world.poll()
    assert policy(world)[0] == "Auto", "the pod that serves is hardly used"


async def test_a_window_that_pins_lets_a_moved_threshold_wait(make: Make) -> None:
    bounds = {"mode": "Apply", "minTokens": 8, "maxTokens": 512}
    world = await serving(make, shift={"adaptive": bounds})
    moved = {"mode": "Apply", "reason": "TargetsMet", "thresholdTokens": 32, "startTokens": 64}
    told(world)["adaptive"] = dict(moved)
    await world.full()
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 32)
    world.now = BEGIN
    await world.poll()
    assert world.runtimes.pods["uid-p1"].policy == Policy("Throughput"), "a pinned gear has no threshold"
    assert told(world)["adaptive"] == {**moved, "reason": "Pinned"}
    world.now = END
    await world.poll()
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 32)


def test_the_autoscaler_knows_that_pinned_pods_do_not_shift(make: Make) -> None:
    spec = specs.parse(make.resource(shift=scheduled(NIGHT))["spec"])
    assert spec.autoscaling.limits.may_shift
    assert not specs.with_policy(spec, spec.schedules[0].policy).autoscaling.limits.may_shift
    latency = specs.parse(make.resource(shift={"policy": "Latency"})["spec"])
    assert specs.with_policy(latency, Policy()).autoscaling.limits.may_shift


async def test_a_spec_that_is_refused_keeps_the_policy_and_what_is_told_of_it(make: Make) -> None:
    world = await serving(make)
    world.now = BEGIN
    await world.full()
    said = dict(told(world)["schedule"])
    world.cluster.resource["spec"]["shift"]["schedules"][0]["timeZone"] = "Mars/Olympus"
    world.cluster.resource["metadata"]["generation"] += 1
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert world.condition("Ready") == ("False", "InvalidSpec")
    assert (policy(world), told(world)["schedule"]) == (("Throughput", 2), said)


# --- what is refused ---


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"start": "24:00"}, "start '24:00' is no time of day"),
        ({"end": "7:00"}, "end '7:00' is no time of day"),
        ({"end": "00:05"}, "both 00:05; write 00:00 to 24:00"),
        ({"days": ["Mo"]}, "days ['Mo'] must be some of Mon"),
        ({"days": []}, "must be some of Mon"),
        ({"timeZone": "Mars/Olympus"}, "timeZone 'Mars/Olympus' is not known"),
        ({"timeZone": "../../etc/passwd"}, "is not known"),
        ({"policy": "Fast"}, "'Fast' is unknown"),
        ({"thresholdTokens": 0}, "thresholdTokens 0 must lie in"),
    ],
)
def test_a_schedule_that_cannot_hold_is_refused(make: Make, changed: Object, said: str) -> None:
    with pytest.raises(InvalidSpecError, match=re.escape(said)):
        specs.parse(make.resource(shift=scheduled({**NIGHT, **changed}))["spec"])


def test_a_name_that_is_there_twice_is_refused(make: Make) -> None:
    with pytest.raises(InvalidSpecError, match="'night' twice"):
        specs.parse(make.resource(shift=scheduled(NIGHT, NIGHT))["spec"])


def test_time_zones_are_known_without_those_of_the_system() -> None:
    """Images of the operator have no database of their own."""
    zoneinfo.reset_tzpath(to=[])
    try:
        assert zoneinfo.ZoneInfo.no_cache("Europe/Berlin").key == "Europe/Berlin"
    finally:
        zoneinfo.reset_tzpath()
