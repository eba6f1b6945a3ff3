from __future__ import annotations

import base64
import copy
from dataclasses import replace
from typing import Any

import pytest
from shiftoperator import manifests, plan
from shiftoperator import spec as specs
from shiftoperator.errors import NameConflictError
from shiftoperator.snapshot import GearState, Load
from shiftoperator.spec import Policy
from shiftprotos import contract

from .conftest import CONTROL, Make

Object = dict[str, Any]
AUTO = Policy("Auto", 64)
IN_FORCE: Object = {"policyGeneration": 4, "policy": {"mode": "Auto", "thresholdTokens": 64}}


@pytest.mark.parametrize(
    ("case", "status", "wanted", "accepted", "generation", "store"),
    [
        ("first", {}, AUTO, [], 1, True),
        ("unchanged", IN_FORCE, AUTO, [4, 4], 4, False),
        ("another mode", IN_FORCE, Policy("Latency", 64), [4], 5, True),
        ("another threshold", IN_FORCE, Policy("Auto", 65), [4], 5, True),
        ("threshold taken away", IN_FORCE, Policy("Auto"), [4], 5, True),
        ("a pod started anew", IN_FORCE, AUTO, [0, 4], 4, False),
        ("status lost", {}, AUTO, [9], 10, True),
        ("status restored from a backup", IN_FORCE, AUTO, [7, 9], 10, True),
    ],
)
def test_policy_generation(
    make: Make, case: str, status: Object, wanted: Policy, accepted: list[int], generation: int, store: bool
) -> None:
    states = [make.state(generation_accepted=number, policy=AUTO) for number in accepted]
    planned = plan.policy(status, wanted, states)
    assert (planned.generation, planned.store, planned.policy) == (generation, store, wanted), case


def test_another_policy_under_our_generation_is_outdone(make: Make) -> None:
    planned = plan.policy(IN_FORCE, AUTO, [make.state(generation_accepted=4, policy=Policy("Latency"))])
    assert (planned.generation, planned.store) == (5, True)


def test_pods_behind_are_pushed_once_they_serve(make: Make) -> None:
    states = {
        "fresh": make.state(generation_accepted=4),
        "restarted": make.state(generation_accepted=0),
        "starting": make.state(generation_accepted=0, ready=False),
    }
    assert plan.behind(make.snapshot(states=states), 4) == ("restarted",)


def test_an_operator_upgrade_keeps_the_stored_template(make: Make) -> None:
    resource = make.resource(runtime={"device": "cpu"})
    spec = specs.parse(resource["spec"])
    first = plan.revision(make.snapshot(resource), spec, "runtime:old")
    stored = {("ControllerRevision", first["metadata"]["name"]): first}
    again = plan.revision(make.snapshot(resource, children=stored), spec, "runtime:new")
    assert again == first
    image = again["data"]["template"]["spec"]["containers"][0]["image"]
    assert image == "runtime:old"


def test_a_new_spec_gets_a_new_revision(make: Make) -> None:
    resource = make.resource()
    first = plan.revision(make.snapshot(resource), specs.parse(resource["spec"]), "d")
    changed = make.resource(engine={"maxNumSeqs": 1})
    stored = {("ControllerRevision", first["metadata"]["name"]): first}
    second = plan.revision(make.snapshot(changed, children=stored), specs.parse(changed["spec"]), "d")
    assert second["metadata"]["name"] != first["metadata"]["name"]
    assert (first["revision"], second["revision"]) == (1, 2)


def observed(child: Object) -> Object:
    """As the API server gives it back: with defaults of its own."""
    metadata = {**child["metadata"], "uid": "x", "resourceVersion": "1", "managedFields": []}
    return {**child, "metadata": metadata, "status": {}}


def desired_children(make: Make) -> tuple[Object, ...]:
    resource = make.resource()
    spec = specs.parse(resource["spec"])
    revision = plan.revision(make.snapshot(resource), spec, "d")
    return manifests.children(resource, spec, revision, CONTROL, "ns")


def test_unchanged_children_cost_no_call(make: Make) -> None:
    wanted = desired_children(make)
    seen = {(c["kind"], c["metadata"]["name"]): observed(c) for c in wanted}
    assert plan.changes(make.snapshot(children=seen), wanted) == plan.Changes((), ())


def test_what_somebody_changed_is_applied_again(make: Make) -> None:
    wanted = desired_children(make)
    seen = {(c["kind"], c["metadata"]["name"]): observed(c) for c in wanted}
    seen["Deployment", "gemma"]["spec"] = {**seen["Deployment", "gemma"]["spec"], "replicas": 7}
    changes = plan.changes(make.snapshot(children=seen), wanted)
    assert [child["kind"] for child in changes.apply] == ["Deployment"]


def test_a_child_of_somebody_else_is_left_alone(make: Make) -> None:
    wanted = desired_children(make)
    foreign = {"kind": "Service", "metadata": {"name": "gemma", "ownerReferences": []}}
    with pytest.raises(NameConflictError, match="Service gemma exists and does not belong"):
        plan.changes(make.snapshot(children={("Service", "gemma"): foreign}), wanted)


def test_old_revisions_go_except_those_in_use(make: Make) -> None:
    resource = make.resource()
    revisions = [manifests.controller_revision(resource, f"h{n}", {}, n) for n in range(1, 9)]
    seen = {("ControllerRevision", r["metadata"]["name"]): r for r in revisions}
    snapshot = make.snapshot(resource, pods=(make.pod(template_hash="h1"),), children=seen)
    gone = plan.changes(snapshot, [revisions[-1]]).delete
    assert [r["metadata"]["name"] for r in gone] == ["gemma-h3", "gemma-h2"]


@pytest.mark.parametrize(
    ("seen", "wanted", "same"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"flag": False, "list": [], "map": {}}, True),
        ({}, {"flag": True}, False),
        ({"cpu": "1"}, {"cpu": "1000m"}, True),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}, True),
        ({"cpu": "2"}, {"cpu": 2}, True),
        ({"cpu": "2"}, {"cpu": "200m"}, False),
        ([1, 2], [1], False),
        ([{"a": 1, "b": 2}], [{"a": 1}], True),
        ("text", "other", False),
    ],
)
def test_contains(seen: object, wanted: object, same: bool) -> None:
    assert plan.contains(seen, wanted) is same


@pytest.mark.parametrize(
    ("token", "valid"), [("t" * 40, True), ("short", False), ("", False), ("t" * 39 + "\n", False)]
)
def test_a_good_token_is_kept(make: Make, token: str, valid: bool) -> None:
    secret = {"data": {contract.CONTROL_TOKEN_KEY: base64.b64encode(token.encode()).decode()}}
    snapshot = make.snapshot(children={("Secret", "gemma-control"): secret})
    assert plan.control_token(snapshot) == (token if valid else None)
    assert plan.control_token(make.snapshot()) is None


def test_share_of_tokens_outside_the_tp_gear(make: Make) -> None:
    state = make.state()
    assert plan.throughput_share(state, None) == pytest.approx(0.9)
    later = replace(state, gears=(GearState("tp2", 1, 2, 0, 1300), GearState("sp2", 2, 1, 0, 9100)))
    assert plan.throughput_share(later, plan.sample(state)) == pytest.approx(0.25)
    assert plan.throughput_share(state, plan.sample(state)) == 1.0
    assert plan.throughput_share(make.state(gears=(GearState("tp1", 1, 1, 5, 5),)), None) == 1.0


def test_what_the_autoscaler_is_told(make: Make) -> None:
    resource = make.resource(replicas=4)
    template_hash = manifests.template_hash(resource["spec"])
    pods = (
        make.pod("p1", template_hash=template_hash, changed_at=90.0),
        make.pod("p2", template_hash=template_hash, changed_at=95.0),
        make.pod("p3", template_hash=template_hash, ready=False, changed_at=70.0),
        make.pod("p4", template_hash=template_hash, ready=False),
        make.pod("p5", deleting=True),
    )
    snapshot = make.snapshot(resource, pods, {"uid-p1": make.state()})
    spec = specs.parse(resource["spec"])
    seen = plan.observation(snapshot, spec, {}, 100.0)
    assert (seen.replicas, seen.ready, [pod.name for pod in seen.pods]) == (4, 2, ["p1"])
    assert (seen.starting_seconds, seen.stopping, seen.rolling) == ((30.0, 0.0), 1, False)
    without = plan.observation(snapshot, spec, {}, 100.0, leaving=pods[:1])
    assert (without.replicas, without.ready, without.pods, without.stopping) == (3, 1, (), 2)
    both = replace(snapshot, states={"uid-p1": make.state(), "uid-p2": make.state()})
    assert [pod.name for pod in plan.observation(both, spec, {}, 100.0).pods] == ["p1", "p2"], "longest ready first"
    old = make.snapshot(resource, (*pods, make.pod("p6")), {})
    assert plan.observation(old, spec, {}, 100.0).rolling


def test_targets_hold_at_the_percentile_of_the_spec(make: Make) -> None:
    spec = specs.parse(make.resource(slo={"tpotMs": 100, "percentile": 99})["spec"])
    state = make.state(load=Load(ttft_seconds={95: 0.2, 99: 0.0}, tpot_seconds={50: 0.01, 95: 0.02, 99: 0.09}))
    told = plan.pod_load("p", spec, state, None)
    assert told.tpot_seconds == 0.09
    assert told.ttft_seconds == 0.2, "an older runtime reports the 95th percentile only"


def test_capacity_is_that_of_the_gear_the_policy_allows(make: Make) -> None:
    auto = specs.parse(make.resource()["spec"])
    pinned = specs.parse(make.resource(shift={"policy": "Latency"})["spec"])
    assert plan.pod_load("p", auto, make.state(), None).capacity_tokens_per_second == 1000
    assert plan.pod_load("p", pinned, make.state(), None).capacity_tokens_per_second == 400
    assert plan.pod_load("p", auto, make.state(), None).kv_used_fraction == pytest.approx(0.25)


def test_an_annotation_that_the_user_took_back_is_taken_away(make: Make) -> None:
    """What was not asked for any more stayed, as what others write on a Service must."""
    resource = make.resource()
    spec = specs.parse(resource["spec"])
    wanted = manifests.children(resource, spec, {"kind": "x", "data": {"template": {}}}, CONTROL, "shift-system")
    service = next(child for child in wanted if child["kind"] == "Service")
    identity = ("Service", "gemma")
    seen = copy.deepcopy(service)
    seen["metadata"]["annotations"] = {"ours": "1", "theirs": "2"}

    def managed(*names: str) -> Object:
        fields = {"f:metadata": {"f:annotations": {".": {}} | {f"f:{name}": {} for name in names}}}
        return {"manager": "shift-operator", "operation": "Apply", "fieldsV1": fields}

    theirs = {**managed("theirs"), "manager": "cloud", "operation": "Update"}
    seen["metadata"]["managedFields"] = [managed("ours"), theirs]
    assert plan.changes(make.snapshot(children={identity: seen}), [service]).apply == (service,)
    seen["metadata"]["managedFields"] = [managed(), theirs]
    assert plan.changes(make.snapshot(children={identity: seen}), [service]).apply == ()
