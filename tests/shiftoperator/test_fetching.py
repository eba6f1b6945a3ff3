"""The step that fetches a model: its container, its volume, and what the status tells of it."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator import manifests, status
from shiftoperator import spec as specs
from shiftoperator.errors import InvalidSpecError
from shiftoperator.runtime_client import endpoints
from shiftoperator.snapshot import Phase, Pod, RuntimeState, pod_from
from shiftprotos import contract

from .conftest import Make

Object = dict[str, Any]
MODEL: Object = {"uri": "hf://meta/llama", "revision": "v1", "secretRef": {"name": "hub"}}


def template(resource: Object) -> Object:
    found: Object = manifests.pod_template("gemma", specs.parse(resource["spec"]), "h", "default:1")["spec"]
    return found


def step(resource: Object) -> Object:
    [found] = template(resource)["initContainers"]
    return dict(found)


def test_the_step_has_the_runtimes_image_and_nobodys_rights(make: Make) -> None:
    pod = template(make.resource(model=MODEL))
    [fetch], [runtime] = pod["initContainers"], pod["containers"]
    assert (fetch["image"], fetch["securityContext"]) == (runtime["image"], runtime["securityContext"])
    assert fetch["terminationMessagePath"] == contract.TERMINATION_LOG_PATH
    assert " ".join(fetch["args"]) == (
        "fetch hf://meta/llama@v1 --model-cache /cache/models --host 0.0.0.0 --control-port 9001"
    )


@pytest.mark.parametrize(
    ("logs", "said"),
    [
        ({"format": "json", "level": "debug", "requests": True}, ["--log-format", "json", "--log-level", "debug"]),
        ({"format": "text"}, ["--log-format", "text"]),
        ({"level": "debug"}, ["--log-level", "debug"]),
    ],
)
def test_the_step_logs_in_the_form_that_was_asked_for(make: Make, logs: Object, said: list[str]) -> None:
    """Its lines were text beside JSON of the runtime."""
    plain, asked = step(make.resource(model=MODEL)), step(make.resource(model=MODEL, observability={"logs": logs}))
    assert [argument for argument in asked["args"] if argument not in plain["args"]] == said


def test_the_runtime_serves_what_was_fetched_and_asks_nobody(make: Make) -> None:
    [runtime] = template(make.resource(model=MODEL))["containers"]
    assert runtime["args"][:3] == ["serve", "hf://meta/llama@v1", "--offline"]
    assert runtime["args"][-2:] == ["--model-cache", "/cache/models"]
    assert "--calibration" not in runtime["args"]


def test_only_the_step_gets_the_secret_and_never_as_an_argument(make: Make) -> None:
    pod = template(make.resource(model=MODEL))
    [fetch], [runtime] = pod["initContainers"], pod["containers"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "hub"}}]
    assert "envFrom" not in runtime
    assert not any("secret" in str(volume) for volume in pod["volumes"] if volume["name"] != "control")
    assert manifests.secrets_named({"spec": pod}, "gemma") == ("hub",)


def test_the_step_asks_for_no_accelerator(make: Make) -> None:
    resources = {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}}
    fetch = step(make.resource(model=MODEL, runtime={"device": "cuda", "resources": resources}))
    assert fetch["resources"] == {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}


def test_what_stands_in_the_environment_reaches_the_step(make: Make) -> None:
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    assert proxy in step(make.resource(model=MODEL, runtime={"env": [proxy]}))["env"]


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        (None, {"emptyDir": {}}),
        ({"sizeLimit": "200Gi"}, {"emptyDir": {"sizeLimit": "200Gi"}}),
        ({"claimName": "shared"}, {"persistentVolumeClaim": {"claimName": "shared"}}),
    ],
)
def test_the_cache_is_a_volume_of_both(make: Make, cache: Object | None, volume: Object) -> None:
    changed: Object = {"model": MODEL} if cache is None else {"model": MODEL, "cache": cache}
    pod = template(make.resource(**changed))
    assert {"name": "cache", **volume} in pod["volumes"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {"name": "cache", "mountPath": "/cache"} in container["volumeMounts"]


def test_a_claim_of_the_cache_may_be_written_by_the_pods_user(make: Make) -> None:
    security = template(make.resource(model=MODEL, cache={"claimName": "shared"}))["securityContext"]
    assert (security["fsGroup"], security["fsGroupChangePolicy"]) == (65532, "OnRootMismatch")
    assert "fsGroup" not in template(make.resource(model=MODEL))["securityContext"]


def test_the_size_of_the_cache_bounds_the_fetch(make: Make) -> None:
    arguments = step(make.resource(model=MODEL, cache={"sizeLimit": "1Gi"}))["args"]
    assert arguments[arguments.index("--limit") + 1] == str(2**30)


def test_a_mounted_model_has_no_step_and_costs_are_kept_in_a_cache_if_there_is_one(make: Make) -> None:
    assert "initContainers" not in template(make.resource())
    shared: Object = {"cache": {"claimName": "shared"}}
    pod = template(make.resource(**shared, shift={"calibration": {"mode": "Keep"}}))
    assert "initContainers" not in pod
    arguments = pod["containers"][0]["args"]
    assert arguments[arguments.index("--calibration") + 1] == "/cache/calibration-gemma.json"
    for shift in ({}, {"calibration": {"mode": "Off"}}, {"calibration": {"mode": "EveryStart"}}):
        assert "--calibration" not in template(make.resource(**shared, shift=shift))["containers"][0]["args"]


def test_a_changed_cache_replaces_pods(make: Make) -> None:
    hashes = {
        manifests.template_hash(make.resource(**changed)["spec"])
        for changed in ({}, {"cache": {"claimName": "a"}}, {"cache": {"claimName": "b"}})
    }
    assert len(hashes) == 3


def owned(**keys: Any) -> Object:
    return {"spec": {"initContainers": [{"name": "shift-fetch", **keys}]}}


@pytest.mark.parametrize(
    ("over", "path"),
    [
        (owned(image="mine"), "initContainers[0].image"),
        (owned(args=["x"]), "initContainers[0].args"),
        (owned(env=[{"name": contract.ENV_CONTROL_TOKEN_FILE, "value": "x"}]), "initContainers[0].env[0]"),
        (owned(volumeMounts=[{"name": "v", "mountPath": "/cache"}]), "initContainers[0].volumeMounts[0]"),
        ({"spec": {"volumes": [{"name": "cache", "emptyDir": {}}]}}, "volumes[0]"),
    ],
)
def test_the_step_is_the_operators(make: Make, over: Object, path: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        template(make.resource(model=MODEL, podTemplate=over))
    assert f"podTemplate.spec.{path} cannot be set" in caught.value.message


def test_a_volume_named_cache_is_the_users_where_there_is_no_cache(make: Make) -> None:
    mine = {"name": "cache", "emptyDir": {}}
    pod = template(make.resource(podTemplate={"spec": {"volumes": [mine]}}))
    assert mine in pod["volumes"]


def test_a_mount_may_be_added_to_the_step(make: Make) -> None:
    mount = {"name": "wheels", "mountPath": "/opt/wheels"}
    assert mount in step(make.resource(model=MODEL, podTemplate=owned(volumeMounts=[mount])))["volumeMounts"]


# --- what is seen of it ---


def seen(**step_status: Any) -> Pod:
    return pod_from(
        {
            "metadata": {"name": "p1", "uid": "u", "annotations": {}},
            "spec": {},
            "status": {
                "podIP": "10.0.0.1",
                "initContainerStatuses": [{"name": "shift-fetch", "restartCount": 2, **step_status}],
                "containerStatuses": [{"name": "runtime", "state": {"waiting": {"reason": "PodInitializing"}}}],
            },
        }
    )


def test_a_step_that_runs_can_be_asked() -> None:
    pod = seen(state={"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    assert [endpoint.address for endpoint in endpoints([pod])] == ["10.0.0.1:9001"]


def test_a_step_that_failed_says_why(make: Make) -> None:
    ended = {"exitCode": 1, "message": '{"reason": "FetchFailed", "message": "the hub cannot be reached"}'}
    pod = seen(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": ended})
    assert pod.failure is not None
    assert (pod.failure.reason, pod.failure.message, pod.num_failures) == (
        "FetchFailed",
        "the hub cannot be reached",
        3,
    )
    assert model_loaded(make, pod, None)["reason"] == contract.REASON_FETCH_FAILED


def test_a_missing_secret_is_what_the_kubelet_says() -> None:
    pod = seen(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}})
    assert pod.obstacle is not None
    assert (pod.obstacle.reason, pod.obstacle.message) == ("CreateContainerConfigError", 'secret "hub" not found')


def test_after_the_step_the_runtime_speaks() -> None:
    ended = {"exitCode": 0, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:30Z"}
    pod = seen(state={"terminated": ended})
    assert (pod.failure, pod.running, pod.obstacle, pod.fetch_seconds) == (None, False, None, 90.0)


def model_loaded(make: Make, pod: Pod, state: RuntimeState | None) -> Object:
    outcome = status.Outcome(1, pod.template_hash, 0, status.Scaling(False, "Disabled", "off"))
    snapshot = make.snapshot(make.resource(model=MODEL), (pod,), {pod.uid: state} if state else {})
    built = status.build(snapshot, outcome, [], "2026-01-01T00:00:00Z")
    return next(c for c in built["conditions"] if c["type"] == contract.CONDITION_MODEL_LOADED)


@pytest.mark.parametrize(
    ("num_bytes", "share"), [(0, "0 % of 10.0 GiB"), (45 * 2**30 // 10, "40 % of 10.0 GiB"), (10 * 2**30, "100 % of")]
)
def test_the_status_tells_the_share_in_steps_of_ten_percent(make: Make, num_bytes: int, share: str) -> None:
    state = RuntimeState(0.0, phases=(Phase("fetch", 3.0, num_bytes, False, 10 * 2**30),))
    told = model_loaded(make, seen(state={"running": {}}), state)
    assert (told["status"], told["reason"]) == ("False", "Fetching")
    assert share in told["message"]


def test_the_slowest_start_counts_the_step(make: Make) -> None:
    pod = make.pod(fetch_seconds=60.0)
    state = make.state(phases=(Phase("load", 5.0, 100, True),))
    outcome = status.Outcome(1, "h", 0, status.Scaling(False, "Disabled", "off"))
    built = status.build(make.snapshot(pods=(pod,), states={pod.uid: state}), outcome, [], "2026-01-01T00:00:00Z")
    assert built["slowestStart"]["seconds"] == 65
    assert [phase["name"] for phase in built["slowestStart"]["phases"]] == ["fetch", "load"]
