"""`kubectl shift policy`: what is patched, and what is waited for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Shift, case

Object = dict[str, Any]
KEY = "shiftdeployments.shiftparallel.dev"


def changed(applied: bool, generation: int = 6, policy: str = "Latency", **spec: Any) -> Object:
    """The resource after the patch; `applied`: as it is once every pod has the policy."""
    resource = case("healthy")
    resource["metadata"]["generation"] = generation
    resource["spec"] |= {"shift": {"policy": policy}, **spec}
    if applied:
        status = resource["status"]
        status |= {"observedGeneration": generation, "policyGeneration": 5, "policy": {"mode": policy}}
        for condition in status["conditions"]:
            condition["observedGeneration"] = generation
    return resource


def applying() -> Object:
    resource = changed(True)
    for condition in resource["status"]["conditions"]:
        if condition["type"] == "PolicyInSync":
            condition |= {"status": "False", "reason": "Applying", "message": "1 of 2 ready pods applied generation 5"}
    return resource


@pytest.mark.parametrize(
    ("arguments", "patch"),
    [
        (["latency"], {"policy": "Latency"}),
        (["AUTO"], {"policy": "Auto"}),
        (["throughput", "--threshold", "64"], {"policy": "Throughput", "thresholdTokens": 64}),
        (["--threshold", "1048576"], {"thresholdTokens": 1048576}),
        (["auto", "--no-threshold"], {"policy": "Auto", "thresholdTokens": None}),
    ],
)
def test_what_is_patched(shift: Shift, arguments: list[str], patch: Object) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False))
    done = shift("policy", "llama", *arguments, "--wait", "0")
    assert (done.code, done.err) == (0, "")
    [call] = shift.calls
    assert call[:4] == ["patch", KEY, "llama", "--type=merge"]
    assert json.loads(call[5]) == {"spec": {"shift": patch}}


def test_waits_until_every_pod_applied_it(shift: Shift) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.resource(changed(False), applying(), applying(), changed(True))
    done = shift("policy", "llama", "latency")
    assert done.code == 0
    assert done.err.splitlines() == [
        "waiting: no operator has seen generation 6 yet",
        "waiting: 1 of 2 ready pods applied generation 5",
    ]
    assert done.out.splitlines() == [
        "policy of team/llama is Latency (measured crossover) in the spec, generation 6",
        "applied by 2 ready pods, policy generation 5",
    ]


def test_as_json(shift: Shift) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.resource(applying(), changed(True))
    done = shift("policy", "llama", "latency", "-o", "json")
    assert done.code == 0
    told = json.loads(done.out)
    assert told == {
        "namespace": "team", "name": "llama", "generation": 6, "observedGeneration": 6,
        "policy": json.loads(shift("status", "llama", "-o", "json").out)["policy"],
    }  # fmt: skip
    assert (told["policy"]["asked"]["mode"], told["policy"]["inSync"]) == ("Latency", True)
    assert "applied by 2 ready pods, policy generation 5" in done.err
    assert json.loads(shift("policy", "llama", "-o", "json").out) == told, "the same without a change"


def test_as_json_at_the_deadline(shift: Shift) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.resource(applying())
    done = shift("policy", "llama", "latency", "-o", "json", "--wait", "0.1")
    assert (done.code, json.loads(done.out)["policy"]["inSync"]) == (2, False)


def test_in_sync_with_the_policy_before_does_not_count(shift: Shift) -> None:
    """PolicyInSync is True of an earlier generation until the operator has looked."""
    before = changed(True)
    for condition in before["status"]["conditions"]:
        condition["observedGeneration"] = 5
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.resource(before)
    done = shift("policy", "llama", "latency", "--wait", "0.1")
    assert done.code == 2
    assert "not within 0.1 s" in done.err


def test_the_same_policy_again_is_in_sync_at_once(shift: Shift) -> None:
    same = changed(True, generation=5, policy="Auto")
    shift.answer(f"patch-{KEY}-llama", same)
    shift.resource(same)
    assert shift("policy", "llama", "auto").code == 0
    assert len(shift.calls) == 2


@pytest.mark.parametrize("spec", [{"suspend": True}, {"replicas": 0}])
def test_without_pods_nobody_is_waited_for(shift: Shift, spec: Object) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False, **spec))
    done = shift("policy", "llama", "latency")
    assert done.code == 0
    assert "no pod is asked for" in done.out
    assert len(shift.calls) == 1


def test_a_refused_spec_ends_the_wait(shift: Shift) -> None:
    refused = applying()
    refused["status"]["conditions"][0] |= {"status": "False", "reason": "InvalidSpec", "message": "gpus 0"}
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.resource(refused)
    done = shift("policy", "llama", "latency")
    assert (done.code, done.err) == (1, "kubectl shift: the operator refused the spec: gpus 0\n")


def test_somebody_elses_change_ends_the_wait(shift: Shift) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.resource(changed(True, generation=7, policy="Throughput"))
    done = shift("policy", "llama", "latency")
    assert done.code == 1
    assert "somebody else changed the policy meanwhile: it is Throughput" in done.err


def test_one_failure_of_kubectl_does_not_end_the_wait(shift: Shift) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.resource(changed(False), "Error: busy", "Error: busy", changed(True))  # type: ignore[arg-type]
    assert shift("policy", "llama", "latency").code == 0


def test_three_failures_in_a_row_end_it(shift: Shift) -> None:
    shift.answer(f"patch-{KEY}-llama", changed(False))
    shift.answer(f"get-{KEY}-llama", "Error: gone\n")
    done = shift("policy", "llama", "latency")
    assert (done.code, done.err) == (1, "Error: gone\n" * 3)


def test_a_patch_that_the_api_server_refuses(shift: Shift) -> None:
    shift.answer(f"patch-{KEY}-llama", "Error from server (Forbidden): you may not\n")
    done = shift("policy", "llama", "latency")
    assert (done.code, done.out, done.err) == (1, "", "Error from server (Forbidden): you may not\n")


@pytest.mark.parametrize("threshold", ["0", "-5", "1048577"])
def test_a_threshold_out_of_bounds(shift: Shift, threshold: str) -> None:
    done = shift("policy", "llama", f"--threshold={threshold}")
    assert done.code == 1
    assert f"--threshold {threshold}: use 1..1048576 tokens" in done.err
    assert shift.calls == []


def test_what_is_set_is_compared_with_what_was_asked(shift: Shift) -> None:
    """A policy that a schedule or busy pods kept from being set was told as applied."""
    scheduled = changed(True)
    night = {"name": "night", "policy": "Throughput", "until": "2030-01-02T05:00:00Z"}
    scheduled["status"] |= {"policy": {"mode": "Throughput"}, "schedule": night}
    biased = changed(True, policy="Auto")
    biased["status"] |= {"policy": {"mode": "Throughput"}}
    for condition in biased["status"]["conditions"]:
        if condition["type"] == "PolicyInSync":
            condition["message"] = "applied: Throughput in place of Auto, while pods are away"
    for resource, why in (
        (scheduled, "night holds (Throughput) until 2030-01-02T05:00:00Z, then spec.shift.policy"),
        (biased, "applied: Throughput in place of Auto, while pods are away"),
    ):
        shift.answer(f"patch-{KEY}-llama", resource)
        shift.resource(resource)
        done = shift("policy", "llama", "latency")
        assert done.code == 0
        said = f"Throughput (measured crossover) and not what was asked for; {why}"
        assert done.out.splitlines()[1] == f"applied by 2 ready pods, policy generation 5: {said}"


def test_a_schedule_is_told(shift: Shift) -> None:
    resource = changed(True)
    resource["status"]["schedule"] = {"until": "2030-01-01T21:00:00Z", "next": "night"}
    shift.resource(resource)
    for verb in ("why", "policy", "status"):
        assert "none holds until 2030-01-01T21:00:00Z, then night" in shift(verb, "llama").out, verb
    told = json.loads(shift("why", "llama", "-o", "json").out)["policy"]
    assert (told["asked"]["mode"], told["schedule"]) == ("Latency", resource["status"]["schedule"])
