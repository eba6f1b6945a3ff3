"""Whatever was seen, the status fits its schema, says only documented reasons, and rests when nothing changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import structural
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shiftoperator import status
from shiftoperator.errors import InvalidSpecError, NameConflictError
from shiftoperator.snapshot import Failure, GearState, Load, Obstacle, Phase, Pod, RuntimeState, SelfCheck, Snapshot
from shiftoperator.spec import PERCENTILES, Policy, pods_asked
from shiftprotos import contract

from .conftest import RESOURCE

Object = dict[str, Any]
VALIDATOR = structural.status_validator()
NOW = "2030-01-01T00:00:00Z"
LATER = [f"2030-01-01T{hour:02}:00:00Z" for hour in range(1, 12)]

words = st.text(max_size=1200)
short = st.text(alphabet="abcxyz-0189", min_size=1, max_size=253)
times = st.sampled_from(["", NOW, "2029-12-31T23:59:59Z", "2029-06-01T00:00:00Z"])
seconds = st.sampled_from([0.0, 1e-9, 0.2, 0.5, 1.9, 2.1, 1e9, float("inf"), float("nan")])
counts = st.sampled_from([0, 1, 7, 16, 2**31 - 1, 2**32 - 1])
big = st.sampled_from([0, 1, 5, 2**63, 2**64 - 1])
failures = st.builds(
    Failure,
    pod=short,
    reason=st.sampled_from([contract.REASON_RANK_FAILED, contract.REASON_SELF_CHECK_FAILED, "SunSpots", "x" * 64]),
    exit_code=st.integers(-1, 255),
    message=words.map(lambda text: text[:900]),
    time=times,
)
obstacles = st.builds(
    Obstacle,
    reason=st.sampled_from(["Unschedulable", "SchedulingGated", "ErrImagePull", "ImagePullBackOff", "MoonPhase"]),
    message=words.map(lambda text: text[:900]),
)
pods = st.builds(
    Pod,
    name=short,
    uid=short,
    ip=st.just("10.0.0.1"),
    ready=st.booleans(),
    running=st.booleans(),
    deleting=st.booleans(),
    template_hash=st.sampled_from(["h", "old"]),
    ended=st.none() | failures,
    obstacle=st.none() | obstacles,
    scheduled=st.none() | st.booleans(),
    draining=st.booleans(),
    started_at=times,
)
gears = st.builds(
    GearState,
    name=st.sampled_from(["tp2", "sp2", "x" * 500]) | words,
    sequence=counts,
    tensor=counts,
    steps=big,
    tokens=big,
    capacity_tokens_per_second=seconds,
)
quantiles = st.dictionaries(st.sampled_from(PERCENTILES), seconds)
loads = st.builds(
    Load,
    running_requests=counts,
    waiting_requests=counts,
    waiting_tokens=big,
    max_running_requests=counts,
    kv_blocks_total=counts,
    kv_blocks_free=counts,
    oldest_wait_seconds=seconds,
    ttft_seconds=quantiles,
    tpot_seconds=quantiles,
    prompt_tokens_per_second=seconds,
    output_tokens_per_second=seconds,
)
states = st.builds(
    RuntimeState,
    read_at=st.just(1.0),
    ready=st.booleans(),
    policy=st.just(Policy()),
    generation_accepted=big,
    generation_applied=big,
    gears=st.lists(gears, max_size=20).map(tuple),
    base_gear=words,
    threshold_tokens=counts,
    threshold_source=words,
    crossover_tokens=counts,
    crossover_reason=words,
    self_check=st.none() | st.builds(SelfCheck, st.booleans(), words),
    load=loads,
    phases=st.lists(
        st.builds(Phase, st.sampled_from(contract.PHASES) | words, seconds, big, st.booleans()), max_size=20
    ).map(tuple),
    dtype=words,
    version=words,
)
errors = st.sampled_from([None, InvalidSpecError("gpus 0"), NameConflictError("Service", "x" * 2000)])
decisions = st.lists(st.fixed_dictionaries({"reason": st.just("Idle"), "message": words}), max_size=12)
specs = st.fixed_dictionaries(
    {"replicas": st.integers(0, 4), "suspend": st.booleans()},
    optional={"slo": st.sampled_from([{}, {"ttftMs": 2000}, {"ttftMs": 1, "tpotMs": 3600000}])},
)


@st.composite
def moments(draw: st.DrawFn) -> tuple[Snapshot, status.Outcome, list[Object]]:
    spec = {**RESOURCE["spec"], **draw(specs)}
    seen = draw(st.lists(pods, max_size=20, unique_by=(lambda pod: pod.uid, lambda pod: pod.name)))
    answered = {pod.uid: draw(states) for pod in seen if draw(st.booleans())}
    scaling = status.Scaling(draw(st.booleans()), "Steady", draw(words))
    refusal = {"type": "ReplicaFailure", "status": draw(st.sampled_from(["True", "False"])), "message": draw(words)}
    children = {("Deployment", "gemma"): {"status": {"conditions": [refusal]}}}
    generation = draw(st.sampled_from([0, 1, 5]))
    outcome = status.Outcome(pods_asked(spec), "h", generation, scaling, draw(errors))
    return Snapshot({**RESOURCE, "spec": spec}, children, tuple(seen), answered), outcome, draw(decisions)


def after(snapshot: Snapshot, outcome: status.Outcome, past: list[Object], now: str) -> tuple[Snapshot, Object]:
    """The snapshot with the status written, and what was written."""
    written = status.patch(snapshot.status, status.build(snapshot, outcome, past, now))
    # As it comes back: through JSON, merged by the API server.
    resource = {**snapshot.resource, "status": merged(snapshot.status, json.loads(json.dumps(written)))}
    return Snapshot(resource, snapshot.children, snapshot.pods, snapshot.states), written


def merged(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        result[name] = None if value is None else merged(result.get(name), value)
    return {name: value for name, value in result.items() if value is not None}


relaxed = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed
@given(moments())
def test_a_status_fits_its_schema(moment: tuple[Snapshot, status.Outcome, list[Object]]) -> None:
    snapshot, outcome, past = moment
    written, _ = after(snapshot, outcome, past, NOW)
    assert structural.problems(VALIDATOR, written.status) == []


@relaxed
@given(moments())
def test_only_documented_reasons_are_said(moment: tuple[Snapshot, status.Outcome, list[Object]]) -> None:
    snapshot, outcome, _ = moment
    said = {(c["type"], c["reason"]) for c in status.conditions(snapshot, outcome, NOW)}
    known = {(type_, reason) for type_, listed in status.reasons.OF_CONDITION.items() for reason in listed}
    assert said - known - {("ScalingActive", "Steady")} == set()


@relaxed
@given(moments())
def test_the_same_snapshot_is_written_once(moment: tuple[Snapshot, status.Outcome, list[Object]]) -> None:
    snapshot, outcome, past = moment
    first, _ = after(snapshot, outcome, past, NOW)
    second, written = after(first, outcome, past, NOW)
    assert written == {}
    assert status.transitions(first.status, second.status) == ()


@relaxed
@given(moments())
def test_time_alone_comes_to_rest(moment: tuple[Snapshot, status.Outcome, list[Object]]) -> None:
    """Bands fall and holds end; then nothing is written any more, however long it lasts."""
    snapshot, outcome, past = moment
    for now in LATER:
        snapshot, written = after(snapshot, outcome, past, now)
    assert written == {}


@relaxed
@given(moments(), moments())
def test_the_last_moment_decides(
    one: tuple[Snapshot, status.Outcome, list[Object]], other: tuple[Snapshot, status.Outcome, list[Object]]
) -> None:
    """From any status to any other in one write: nothing of the first is left over to be written again and again."""
    first, _ = after(*one, NOW)
    snapshot, outcome, past = other
    snapshot = Snapshot(
        {**snapshot.resource, "status": first.status}, snapshot.children, snapshot.pods, snapshot.states
    )
    second, _ = after(snapshot, outcome, past, LATER[0])
    assert structural.problems(VALIDATOR, second.status) == []
    assert after(second, outcome, past, LATER[0])[1] == {}


@pytest.mark.parametrize(
    "broken",
    [
        {"replicas": 2**31},
        {"replicas": "1"},
        {"unknown": 1},
        {"gear": "x" * 257},
        {"pods": [{"name": "p", "load": "busy"}]},
        {"pods": [{"name": "p"}, {"name": "p"}]},
        {"crossover": {"podStartedAt": "yesterday"}},
        {"decisions": [{}] * 11},
    ],
)
def test_the_schema_can_refuse(broken: Object) -> None:
    assert structural.problems(VALIDATOR, broken) != []
