"""How long a start may take when its model has to come first: no longer than it goes on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from shiftcore import scaling
from shiftoperator import plan
from shiftoperator import spec as specs
from shiftoperator.plan import Moved
from shiftoperator.snapshot import Phase, Pod, RuntimeState, Snapshot, pod_from

from .conftest import Make
from .world import World

Object = dict[str, Any]
DEADLINE = 1800.0


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def state(num_bytes: int, phase: str = "fetch") -> RuntimeState:
    return RuntimeState(0.0, phases=(Phase(phase, 1.0, num_bytes, False, 10**12),))


class Rollout:
    """A new revision whose only pod fetches another model; nobody else serves."""

    def __init__(self, world: World) -> None:
        self.world = world

    @classmethod
    async def begun(cls, make: Make) -> Rollout:
        world = await World(make).healthy()
        world.now += 20
        await world.full()  # the first revision has been good for a while
        resource = world.cluster.resource
        resource["spec"]["model"] = {"uri": "hf://team/large"}
        resource["metadata"]["generation"] += 1
        await world.full()
        for kind, name in list(world.cluster.objects):
            if kind == "Pod":
                del world.cluster.objects[kind, name]
        deployment = world.cluster.objects["Deployment", "gemma"]
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        world.cluster.add_pod("new", annotations["shiftparallel.dev/template-hash"])
        found = cls(world)
        found.shows({"running": {"startedAt": stamp(world.now)}})
        found.since = stamp(world.now)
        await world.full()
        return found

    since = stamp(0)

    def shows(self, step: Object, restarts: int = 0, runtime: Object | None = None) -> None:
        self.since = self.since if self.since != stamp(0) else stamp(self.world.now)
        self.world.cluster.objects["Pod", "new"]["status"] |= {
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "False", "lastTransitionTime": self.since},
            ],
            "initContainerStatuses": [{"name": "shift-fetch", "restartCount": restarts, "state": step}],
            "containerStatuses": [{"name": "runtime", "state": runtime or {"waiting": {"reason": "PodInitializing"}}}],
        }

    async def goes_on(self, seconds: float, num_bytes: int, phase: str = "fetch") -> None:
        self.world.now += seconds
        self.world.runtimes.pods["uid-new"] = state(num_bytes, phase)
        await self.world.poll()
        await self.world.full()

    @property
    def rejected(self) -> Object | None:
        found: Object | None = self.world.cluster.resource["status"].get("rollout", {}).get("rejected")
        return found


async def test_a_fetch_that_goes_on_is_not_rolled_back_however_long_it_takes(make: Make) -> None:
    rollout = await Rollout.begun(make)
    for step in range(1, 6):
        await rollout.goes_on(DEADLINE - 1, step * 1000)
        assert rollout.rejected is None, f"after {step} looks"
    await rollout.goes_on(DEADLINE - 1, 0, "verify")
    assert rollout.rejected is None, "sums are taken"


async def test_a_fetch_that_stands_still_is_rolled_back_at_the_deadline(make: Make) -> None:
    rollout = await Rollout.begun(make)
    await rollout.goes_on(DEADLINE - 1, 1000)
    await rollout.goes_on(DEADLINE - 1, 1000)
    assert rollout.rejected is None
    await rollout.goes_on(1, 1000)
    assert rollout.rejected is not None
    assert rollout.rejected["reason"] == "ProgressDeadlineExceeded"


async def test_a_fetch_that_begins_again_and_again_gets_nowhere(make: Make) -> None:
    rollout = await Rollout.begun(make)
    await rollout.goes_on(900, 5000)
    await rollout.goes_on(900, 10)
    await rollout.goes_on(900, 4000)
    assert rollout.rejected is not None


async def test_an_operator_that_starts_gives_a_fetch_the_deadline_anew(make: Make) -> None:
    rollout = await Rollout.begun(make)
    await rollout.goes_on(DEADLINE - 1, 1000)
    rollout.world.restart_operator()
    await rollout.goes_on(DEADLINE - 1, 1000)
    assert rollout.rejected is None


async def test_a_step_that_misses_a_reading_has_not_begun_again(make: Make) -> None:
    rollout = await Rollout.begun(make)
    await rollout.goes_on(1000, 1000)
    await rollout.goes_on(1000, 0)  # it answers, and knows nothing yet
    await rollout.goes_on(799, 1500)
    await rollout.goes_on(DEADLINE - 1, 1500)
    assert rollout.rejected is None


async def test_a_fetch_that_fails_for_good_is_rolled_back_with_its_reason(make: Make) -> None:
    rollout = await Rollout.begun(make)
    await rollout.goes_on(3000, 1000)
    ended = {"exitCode": 1, "message": '{"reason": "ModelNotFound", "message": "team/large has no revision v9"}'}
    rollout.shows({"terminated": ended})
    await rollout.world.full()
    assert rollout.rejected is not None
    assert (rollout.rejected["reason"], "no revision v9" in rollout.rejected["message"]) == ("ModelNotFound", True)


async def test_a_fetch_that_failed_and_goes_on_is_not_rolled_back(make: Make) -> None:
    """Seen only after it was started again."""
    rollout = await Rollout.begun(make)
    rollout.shows({"running": {"startedAt": stamp(rollout.world.now)}}, restarts=3)
    ended = {"exitCode": 1, "message": '{"reason": "FetchFailed", "message": "reset"}'}
    step = rollout.world.cluster.objects["Pod", "new"]["status"]["initContainerStatuses"][0]
    step["lastState"] = {"terminated": ended}
    await rollout.goes_on(10, 1000)
    assert rollout.rejected is None
    step["state"] = {"terminated": ended}
    await rollout.world.full()
    assert rollout.rejected is not None
    assert rollout.rejected["reason"] == "FetchFailed"


async def test_after_the_fetch_the_start_has_its_deadline(make: Make) -> None:
    rollout = await Rollout.begun(make)
    await rollout.goes_on(DEADLINE - 1, 1000)
    await rollout.goes_on(DEADLINE - 1, 2000)
    ended = {"exitCode": 0, "startedAt": stamp(0), "finishedAt": stamp(rollout.world.now)}
    rollout.shows({"terminated": ended}, runtime={"running": {}})
    await rollout.goes_on(DEADLINE - 1, 0, "load")
    assert rollout.rejected is None
    await rollout.goes_on(1, 0, "load")
    assert rollout.rejected is not None


# --- the autoscaler ---

NOW = 10_000.0


def starting(make: Make, seen: Pod, moved: Moved | None = None) -> tuple[float, ...]:
    before = {} if moved is None else {seen.uid: moved}
    snapshot, _ = plan.followed(make.snapshot(pods=(seen,), states={seen.uid: state(500)}), before, NOW)
    return plan.observation(snapshot, specs.parse(snapshot.resource["spec"]), {}, NOW).starting_seconds


@pytest.mark.parametrize(
    ("changed", "moved", "seconds"),
    [
        ({}, None, 5000.0),  # a pod that fetches nothing
        ({"fetching": True}, Moved((0, 400), NOW - 700), 0.0),  # it goes on
        ({"fetching": True}, Moved((0, 500), NOW - 700), 700.0),  # it stands still
        ({"fetching": False}, Moved((0, 500), NOW - 700), 700.0),  # it failed
        ({"fetched_at": NOW - 100}, Moved((0, 500), NOW - 700), 100.0),  # it is there
    ],
)
def test_a_pod_is_credited_while_its_fetch_goes_on(
    make: Make, changed: Object, moved: Moved | None, seconds: float
) -> None:
    seen = make.pod(ready=False, changed_at=NOW - 5000, **changed)
    assert starting(make, seen, moved) == (seconds,)
    limits = scaling.Limits(maximum=4)
    observed = scaling.Observation(replicas=2, ready=1, pods=(), starting_seconds=(seconds,))
    coming = scaling.decision.credited(limits, observed, NOW, scaling.Memory())
    assert coming == (seconds <= limits.pod_start_seconds)


def test_of_a_pod_that_is_ready_or_gone_nothing_is_remembered(make: Make) -> None:
    before = {"uid-p1": Moved((0, 1), 1.0), "uid-gone": Moved((0, 1), 1.0)}
    snapshot: Snapshot = make.snapshot(pods=(make.pod(),))
    assert plan.followed(snapshot, before, NOW) == (snapshot, {})


def test_when_the_model_was_there_stands_on_the_pod() -> None:
    def seen(step: Object) -> Pod:
        status = {"initContainerStatuses": [{"name": "shift-fetch", "state": step}]}
        return pod_from({"metadata": {"name": "p", "uid": "u"}, "spec": {}, "status": status})

    assert seen({"running": {}}).fetching
    ended = {"startedAt": stamp(10), "finishedAt": stamp(70)}
    assert (seen({"terminated": {**ended, "exitCode": 0}}).fetched_at, seen({"running": {}}).fetched_at) == (70.0, None)
    assert seen({"terminated": {**ended, "exitCode": 1}}).fetched_at is None
