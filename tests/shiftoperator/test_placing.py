"""Devices, shared memory and nodes of the pods."""

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator import manifests
from shiftoperator import spec as specs
from shiftoperator.errors import InvalidSpecError

from .conftest import Make

Object = dict[str, Any]
TEMPLATE: Object = {"name": "gpus", "resourceClaimTemplateName": "eight-h200"}


def pod(make: Make, **spec: Any) -> Object:
    found: Object = manifests.pod_template("gemma", specs.parse(make.resource(**spec)["spec"]), "h", "default:1")
    return dict(found["spec"])


@pytest.mark.parametrize(
    ("runtime", "limits"),
    [
        ({"device": "cuda"}, {"nvidia.com/gpu": "2"}),
        ({"device": "cuda", "gpuResource": "amd.com/gpu"}, {"amd.com/gpu": "2"}),
        ({"device": "cuda", "gpuResource": "nvidia.com/mig-3g.40gb"}, {"nvidia.com/mig-3g.40gb": "2"}),
        ({"device": "cuda", "resourceClaims": [TEMPLATE]}, None),
        ({"device": "cuda", "resourceClaims": [TEMPLATE], "gpuResource": "nvidia.com/gpu"}, {"nvidia.com/gpu": "2"}),
        ({"device": "cpu"}, None),
    ],
)
def test_what_a_pod_asks_for(make: Make, runtime: Object, limits: Object | None) -> None:
    [container] = pod(make, runtime=runtime)["containers"]
    assert container["resources"].get("limits") == limits


def test_claims_are_of_the_pod_and_used_by_the_runtime_alone(make: Make) -> None:
    shared = {"name": "imex", "resourceClaimName": "channel", "request": "one"}
    runtime = {"device": "cuda", "resourceClaims": [TEMPLATE, shared], "resources": {"requests": {"cpu": "4"}}}
    made = pod(make, runtime=runtime, model={"uri": "hf://meta/llama"})
    assert made["resourceClaims"] == [TEMPLATE, {"name": "imex", "resourceClaimName": "channel"}]
    [container], [step] = made["containers"], made["initContainers"]
    claims = [{"name": "gpus"}, {"name": "imex", "request": "one"}]
    assert container["resources"] == {"requests": {"cpu": "4"}, "claims": claims}
    assert "claims" not in step["resources"]


def test_shared_memory_is_the_runtimes_own(make: Make) -> None:
    made = pod(make, runtime={"device": "cuda", "shmSize": "16Gi"}, model={"uri": "hf://meta/llama"})
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in made["volumes"]
    [container], [step] = made["containers"], made["initContainers"]
    mount = {"name": "shm", "mountPath": "/dev/shm"}
    assert mount in container["volumeMounts"]
    assert mount not in step["volumeMounts"]


def test_shared_memory_has_one_home(make: Make) -> None:
    mine = {"containers": [{"name": "runtime", "volumeMounts": [{"name": "mine", "mountPath": "/dev/shm"}]}]}
    assert pod(make, podTemplate={"spec": mine}), "as before, where the spec has none"
    with pytest.raises(InvalidSpecError, match="the operator mounts /dev/shm"):
        pod(make, runtime={"device": "cuda", "shmSize": "16Gi"}, podTemplate={"spec": mine})


PLACEMENT: Object = {
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200", "zone": "a"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "spread": [{"topologyKey": "topology.kubernetes.io/zone"}, {"topologyKey": "rack", "maxSkew": 2, "required": True}],
    "priorityClassName": "serving",
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
}


def test_placement_is_of_the_pod(make: Make) -> None:
    made = pod(make, placement=PLACEMENT)
    for name in ("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName", "schedulerName"):
        assert made[name] == PLACEMENT[name]
    zone, rack = made["topologySpreadConstraints"]
    assert (zone["whenUnsatisfiable"], zone["maxSkew"]) == ("ScheduleAnyway", 1)
    assert (rack["whenUnsatisfiable"], rack["maxSkew"]) == ("DoNotSchedule", 2)
    assert zone["labelSelector"]["matchLabels"]["shiftparallel.dev/deployment"] == "gemma"


def test_the_pod_template_is_merged_over_the_placement(make: Make) -> None:
    over = {
        "nodeSelector": {"zone": "b"},
        "tolerations": [{"operator": "Exists"}],
        "topologySpreadConstraints": [{"topologyKey": "rack", "maxSkew": 5}],
        "schedulerName": "mine",
    }
    made = pod(make, placement=PLACEMENT, podTemplate={"spec": over})
    assert made["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200", "zone": "b"}
    assert made["tolerations"] == [{"operator": "Exists"}]
    assert [one["maxSkew"] for one in made["topologySpreadConstraints"]] == [1, 5]
    assert (made["schedulerName"], made["priorityClassName"]) == ("mine", "serving")


def test_a_changed_placement_replaces_pods(make: Make) -> None:
    asked = ({}, {"placement": {"schedulerName": "a"}}, {"placement": {"schedulerName": "b"}})
    assert len({manifests.template_hash(make.resource(**changed)["spec"]) for changed in asked}) == 3
