"""Since when a start stands still, and when that makes a revision a bad one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from shiftoperator import rollout
from shiftoperator import spec as specs
from shiftoperator.snapshot import Phase, Pod, Snapshot

from .conftest import Make

Object = dict[str, Any]
NOW = 10_000.0
GOOD = "good"


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def starting(make: Make, **changed: Any) -> Pod:
    """Its container has run for 500 s."""
    values: Object = {"ready": False, "changed_at": NOW - 900, "started_at": stamp(NOW - 500)}
    return make.pod(**{**values, **changed})


def look(make: Make, pod: Pod, num_bytes: int | None, before: rollout.Seen, at: float) -> rollout.Seen:
    """With so many bytes loaded; None: the pod did not answer."""
    phases = (Phase("open", 1.0, done=True), Phase("load", at, num_bytes or 0))
    states = {} if num_bytes is None else {pod.uid: make.state(phases=phases)}
    return rollout.seen(make.snapshot(pods=(pod,), states=states), before, at)


@pytest.mark.parametrize(
    ("looks", "since"),
    [
        ([], NOW - 500),
        ([(300, None), (100, None)], NOW - 500),
        ([(300, 10)], NOW - 300),
        ([(300, 10), (200, 10), (100, None), (50, 10)], NOW - 300),
        ([(300, 10), (200, 11), (100, 11)], NOW - 200),
    ],
)
def test_a_start_stands_still_since_it_was_last_seen_to_get_farther(
    make: Make, looks: list[tuple[float, int | None]], since: float
) -> None:
    pod, seen = starting(make), rollout.Seen()
    for ago, num_bytes in looks:
        seen = look(make, pod, num_bytes, seen, NOW - ago)
    assert seen.still_since(pod) == since


@pytest.mark.parametrize(
    ("pod", "since"),
    [
        ({"running": False}, None),  # an image is pulled, or the container waits to be started again
        ({"fetching": True}, None),
        ({"started_at": ""}, None),
        ({"changed_at": None}, None),
        ({"started_at": stamp(NOW - 30)}, NOW - 30),  # the container was started again
        ({"changed_at": NOW - 20}, NOW - 20),  # it was ready until then
        ({"fetched_at": NOW - 10}, NOW - 10),
    ],
)
def test_before_the_runtime_runs_nothing_stands_still(make: Make, pod: Object, since: float | None) -> None:
    assert rollout.Seen().still_since(starting(make, **pod)) == since


def test_of_a_pod_that_is_ready_or_gone_nothing_is_remembered(make: Make) -> None:
    seen = look(make, starting(make), 10, rollout.Seen(), NOW)
    assert list(seen.starts) == ["uid-p1"]
    assert look(make, make.pod(), 10, seen, NOW) == rollout.Seen()
    assert rollout.seen(make.snapshot(), seen, NOW) == rollout.Seen()


class Trial:
    """The only pod of a new revision."""

    def __init__(self, make: Make, slowest: int, **rollout_spec: Any) -> None:
        status: Object = {"rollout": {"goodRevision": GOOD}, "slowestStart": {"pod": "p0", "seconds": slowest}}
        self.make = make
        self.resource = make.resource(status, replicas=1, autoscaling={"mode": "Disabled"}, rollout=rollout_spec)
        self.target = rollout.revisions(make.snapshot(self.resource)).target
        self.others: tuple[Pod, ...] = ()

    def verdict(self, seconds: float, **changed: Any) -> str | None:
        """Of a container that has run for so long."""
        values: Object = {"changed_at": NOW - seconds, "started_at": stamp(NOW - seconds), **changed}
        pod = starting(self.make, template_hash=self.target, **values)
        spec = specs.parse(self.resource["spec"])
        decided = rollout.judge(self._snapshot(pod), spec, NOW, stamp(NOW), rollout.Seen())
        return None if decided.rejected is None else decided.rejected.reason

    def _snapshot(self, pod: Pod) -> Snapshot:
        annotated = {"metadata": {"name": "r", "annotations": {"shiftparallel.dev/template-hash": GOOD}}}
        revision = {"kind": "ControllerRevision", "data": {"template": {}}, **annotated}
        children = {("ControllerRevision", "r"): revision}
        return self.make.snapshot(self.resource, (pod, *self.others), children=children)


LATE = "ProgressDeadlineExceeded"


@pytest.mark.parametrize(
    ("slowest", "deadline", "seconds", "verdict"),
    [
        (100, 1800, 299, None),
        (100, 1800, 300, LATE),
        (5, 1800, 179, None),
        (5, 1800, 180, LATE),
        (1000, 1800, 1799, None),
        (1000, 1800, 1800, LATE),
        (5, 90, 90, LATE),
        (0, 1800, 1799, None),  # how long a start takes is not known
    ],
)
def test_while_nobody_serves_a_start_may_stand_still_for_three_starts(
    make: Make, slowest: int, deadline: int, seconds: float, verdict: str | None
) -> None:
    assert Trial(make, slowest, progressDeadlineSeconds=deadline).verdict(seconds) == verdict


def test_the_fetch_of_the_slowest_start_gives_no_time_to_stand_still(make: Make) -> None:
    trial = Trial(make, 1500)
    phases = [{"name": "fetch", "seconds": 1400, "bytes": 1}, {"name": "load", "seconds": 100, "bytes": 1}]
    trial.resource["status"]["slowestStart"]["phases"] = phases
    assert (trial.verdict(299), trial.verdict(300)) == (None, LATE)


def test_while_another_pod_serves_a_start_has_the_whole_deadline(make: Make) -> None:
    trial = Trial(make, 5)
    trial.others = (make.pod("old", template_hash=GOOD, changed_at=NOW - 5000),)
    assert trial.verdict(1799) is None


@pytest.mark.parametrize("pod", [{"running": False}, {"fetching": True}, {"fetched_at": NOW - 100}])
def test_what_comes_before_the_runtime_is_not_held_against_its_start(make: Make, pod: Object) -> None:
    """A larger image, or another model, takes longer than those before."""
    assert Trial(make, 5).verdict(1799, **pod) is None


def test_who_wants_no_rollback_gets_none_for_a_start_that_hangs(make: Make) -> None:
    assert Trial(make, 5, autoRollback=False).verdict(1799) is None
