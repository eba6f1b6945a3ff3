"""Stored pod templates: what ran before an upgrade of the operator runs on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shiftoperator import manifests, plan, rollout
from shiftoperator import spec as specs
from shiftoperator.errors import InvalidSpecError

from .conftest import CONTROL, Make

Object = dict[str, Any]

# As the operator rendered and stored them before it had rollouts. Never regenerate: such revisions are in clusters.
V0: list[Object] = json.loads((Path(__file__).parent / "golden" / "v0.json").read_text())
NEW_DEFAULTS: Object = {
    "rollout": {"strategy": "NoSurge", "paused": False, "progressDeadlineSeconds": 1800, "autoRollback": True},
    "disruption": {"maxUnavailable": 1},
}


def stored_before(make: Make, case: Object) -> tuple[Object, dict[tuple[str, str], Object]]:
    """The resource as the API server gives it under the present CRD, and what the old operator had made of it."""
    resource = make.resource()
    resource["spec"] = {**case["spec"], **NEW_DEFAULTS}
    revision = case["revision"]
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": "gemma", "ownerReferences": revision["metadata"]["ownerReferences"]},
        "spec": {"template": revision["data"]["template"], "progressDeadlineSeconds": 3600},
    }
    return resource, {
        ("ControllerRevision", revision["metadata"]["name"]): revision,
        ("Deployment", "gemma"): deployment,
    }


@pytest.mark.parametrize("case", V0, ids=lambda case: str(case["case"]))
def test_an_upgrade_keeps_the_template_of_v0(make: Make, case: Object) -> None:
    resource, children = stored_before(make, case)
    spec = specs.parse(resource["spec"])
    revision = plan.revision(make.snapshot(resource, children=children), spec, "runtime:new")
    assert revision == case["revision"]
    wanted = manifests.children(resource, spec, revision, CONTROL, "ns")
    [deployment] = [child for child in wanted if child["kind"] == "Deployment"]
    assert deployment["spec"]["template"] == case["revision"]["data"]["template"], "else every pod would restart"
    # Proves the test: what would be rendered today is something else.
    rendered = manifests.pod_template("gemma", spec, "h", "runtime:new")
    assert rendered != case["revision"]["data"]["template"]


@pytest.mark.parametrize("case", V0, ids=lambda case: str(case["case"]))
def test_an_unchanged_resource_never_gets_a_new_hash(make: Make, case: Object) -> None:
    known = case["revision"]["metadata"]["annotations"]["shiftparallel.dev/template-hash"]
    assert manifests.template_hash(case["spec"]) == known
    assert manifests.template_hash({**case["spec"], **NEW_DEFAULTS}) == known
    assert manifests.template_hash({**case["spec"], "rollout": {}, "disruption": {}}) == known
    assert manifests.template_hash({**case["spec"], "rollout": {"paused": True, "strategy": "Surge"}}) == known


@pytest.mark.parametrize("changed", [{"restartedAt": "2026-11-21T20:00:00Z"}, {"drainSeconds": 0}])
def test_what_of_rollout_replaces_pods(make: Make, changed: Object) -> None:
    plain = make.resource()["spec"]
    hashes = {manifests.template_hash(spec) for spec in (plain, {**plain, "rollout": changed})}
    assert len(hashes) == 2


EMPTY: list[Object] = [
    {"observability": {}},
    {"observability": {"logs": {}}},
    {"service": {}},
    {"service": {"type": "ClusterIP", "annotations": {}}},
    {"placement": {}},
    {"placement": {"nodeSelector": {}, "tolerations": [], "spread": []}},
    {"cache": {}},
    {"engine": {}},
    {"rollout": {}},
    {"podTemplate": {}},
    {"podTemplate": {"metadata": {}, "spec": {}}},
    {"shift": {"policy": "Auto", "thresholdTokens": 64, "calibration": {}}},
]


@pytest.mark.parametrize("empty", EMPTY, ids=str)
def test_what_is_empty_says_as_much_as_what_is_left_out(make: Make, empty: Object) -> None:
    """`observability.logs: {}` replaced every pod by one that was the same."""
    plain = {name: value for name, value in make.resource()["spec"].items() if name != "engine"}
    both = plain, {**plain, **empty}
    assert len({manifests.template_hash(spec) for spec in both}) == 1
    rendered = [manifests.pod_template("gemma", specs.parse(spec), "h", "d") for spec in both]
    assert rendered[0] == rendered[1]


def test_no_authority_for_clients_is_the_same_as_none(make: Make) -> None:
    tls: list[Object] = [{"secretName": "cert"}, {"secretName": "cert", "clientAuth": "None"}]
    hashes = [manifests.template_hash(make.resource(service={"tls": asked})["spec"]) for asked in tls]
    assert hashes[0] == hashes[1]
    # The API server writes the default into stored objects: this hash is in clusters.
    assert manifests.template_hashes(make.resource(service={"tls": tls[1]})["spec"]) == (hashes[1],)


def test_an_empty_choice_of_a_pod_template_is_a_choice(make: Make) -> None:
    volumes: list[list[Object]] = [[{"name": "a"}], [{"name": "a", "emptyDir": {}}]]
    asked = [make.resource(podTemplate={"spec": {"volumes": volume}})["spec"] for volume in volumes]
    assert len({manifests.template_hash(spec) for spec in asked}) == 2


@pytest.mark.parametrize("where", ["deployed", "good", "rejected"])
def test_a_hash_that_counted_what_is_empty_stays_while_it_is_in_use(make: Make, where: str) -> None:
    resource = make.resource(observability={"logs": {}})
    now, before = manifests.template_hashes(resource["spec"])
    assert now != before
    deployment = {"spec": {"template": {"metadata": {"annotations": {"shiftparallel.dev/template-hash": before}}}}}
    told: Object = {"good": {"goodRevision": before}, "rejected": {"rejected": {"revision": before}}}
    resource["status"] = {"rollout": told.get(where, {})}
    children = {("Deployment", "gemma"): deployment} if where == "deployed" else {}
    assert rollout.revisions(make.snapshot(resource, children=children)).target == before
    assert rollout.revisions(make.snapshot(make.resource(observability={"logs": {}}))).target == now


@pytest.mark.parametrize("asked", [None, 5, "x", ["restartedAt"]])
def test_a_rollout_of_another_shape_changes_no_hash(make: Make, asked: Any) -> None:
    plain = make.resource()["spec"]
    assert manifests.template_hash({**plain, "rollout": asked}) == manifests.template_hash(plain)


def test_a_deleted_revision_is_read_from_the_deployment(make: Make) -> None:
    resource, children = stored_before(make, V0[0])
    [name] = [key for key in children if key[0] == "ControllerRevision"]
    del children[name]
    children["Deployment", "gemma"]["spec"]["template"] = {
        **V0[0]["revision"]["data"]["template"],
        "added-by-the-api-server": True,
    }
    revision = plan.revision(make.snapshot(resource, children=children), specs.parse(resource["spec"]), "runtime:new")
    assert revision["data"]["template"] == children["Deployment", "gemma"]["spec"]["template"]


def test_five_revisions_are_kept_and_those_that_are_needed(make: Make) -> None:
    resource = make.resource({"rollout": {"goodRevision": "h2"}})
    target = manifests.template_hash(resource["spec"])
    revisions = [manifests.controller_revision(resource, f"h{n}", {}, n) for n in range(1, 10)]
    wanted = manifests.controller_revision(resource, target, {}, 10)
    children = {("ControllerRevision", r["metadata"]["name"]): r for r in [*revisions, wanted]}
    snapshot = make.snapshot(resource, (make.pod(template_hash="h1"),), children=children)
    gone = {r["metadata"]["name"] for r in plan.changes(snapshot, [wanted]).delete}
    assert gone == {f"gemma-h{n}" for n in (3, 4, 5, 6)}, "h1 runs, h2 is good, and 5 are kept with the present one"
    assert rollout.stored(snapshot, "h2") is not None


@pytest.mark.parametrize(("drain", "grace"), [(None, 60), (0, 30), (120, 150), (3600, 3630)])
def test_a_pod_has_time_to_drain(make: Make, drain: int | None, grace: int) -> None:
    spec = specs.parse(make.resource(rollout={} if drain is None else {"drainSeconds": drain})["spec"])
    template = manifests.pod_template("gemma", spec, "h", "d")
    assert template["spec"]["terminationGracePeriodSeconds"] == grace
    arguments = template["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--drain-seconds") + 1] == str(grace - 30)


@pytest.mark.parametrize("grace", [59, 0, None, "90"])
def test_a_grace_period_that_would_cut_a_drain_is_refused(make: Make, grace: Any) -> None:
    spec = specs.parse(make.resource(podTemplate={"spec": {"terminationGracePeriodSeconds": grace}})["spec"])
    with pytest.raises(InvalidSpecError, match=r"podTemplate.spec.terminationGracePeriodSeconds .* the 60 s"):
        manifests.pod_template("gemma", spec, "h", "d")


def test_a_longer_grace_period_is_the_users(make: Make) -> None:
    spec = specs.parse(make.resource(podTemplate={"spec": {"terminationGracePeriodSeconds": 600}})["spec"])
    assert manifests.pod_template("gemma", spec, "h", "d")["spec"]["terminationGracePeriodSeconds"] == 600


def test_secrets_that_pods_cannot_start_without() -> None:
    template = {
        "spec": {
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "mounted"}},
                {"name": "b", "secret": {"secretName": "maybe", "optional": True}},
                {"name": "c", "secret": {"secretName": "gemma-control"}},
                {"name": "d", "projected": {"sources": [{"secret": {"name": "projected"}}, {"configMap": {}}]}},
                {"name": "e", "emptyDir": {}},
            ],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "all"}}, {"configMapRef": {}}]}],
            "containers": [
                {"name": "runtime", "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                    {"name": "C", "valueFrom": {"secretKeyRef": {"name": "may", "key": "k", "optional": True}}},
                ]},
            ],
        }
    }  # fmt: skip
    assert manifests.secrets_named(template, "gemma") == ("all", "hub", "mounted", "projected")


def test_a_refusal_names_the_path_of_the_spec() -> None:
    said = (
        "failed to create typed patch object (team/gemma; apps/v1, Kind=Deployment): "
        '.spec.template.spec.containers[name="runtime"].liveness: field not declared in schema'
    )
    told = plan.in_words_of_the_spec(said)
    assert 'podTemplate.spec.containers[name="runtime"].liveness: field not declared' in told
    assert plan.in_words_of_the_spec("spec.template.spec.volumes[0].name: Required") == (
        "podTemplate.spec.volumes[0].name: Required"
    )
    assert plan.in_words_of_the_spec("spec.replicas: bad") == "spec.replicas: bad"
