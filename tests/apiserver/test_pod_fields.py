"""Fields of which pods are made, on a real API server: what is refused at apply, and that the pods may exist."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import collection
from shiftoperator import manifests
from shiftoperator import spec as specs

from localcluster.api import ApiError

pytestmark = pytest.mark.timeout(180)

Object = dict[str, Any]
HUB: Object = {"uri": "hf://meta-llama/Llama-3.3-70B-Instruct"}
BUCKET: Object = {"uri": "s3://models/llama"}
CUDA: Object = {"device": "cuda"}

EVERYTHING: Object = {
    "model": {**HUB, "revision": "refs/pr/1", "secretRef": {"name": "hub"}, "servedName": "llama"},
    "cache": {"claimName": "models"},
    "engine": {"gpuMemoryPercent": 90, "prefixCaching": False, "kvCacheDtype": "bfloat16", "maxModelLen": 4096},
    "runtime": {
        **CUDA,
        "shmSize": "32Gi",
        "gpuResource": "nvidia.com/mig-3g.40gb",
        "resourceClaims": [{"name": "imex", "resourceClaimTemplateName": "channel", "request": "one"}],
        "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "8Gi"}},
    },
    "placement": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "spread": [{"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "required": True}],
        "schedulerName": "volcano",
    },
}
ACCEPTED: dict[str, Object] = {
    "everything": EVERYTHING,
    "hub-file": {"model": {"uri": "hf://google/gemma/sub/q4.gguf"}},
    "bucket": {"model": {**BUCKET, "secretRef": {"name": "aws"}}, "cache": {"sizeLimit": "999999Ti"}},
    "cache-of-a-claim-model": {"cache": {"claimName": "costs"}},
    "least": {"engine": {"gpuMemoryPercent": 10}, "runtime": {"shmSize": "1Mi"}},
}
REFUSED: dict[str, tuple[Object, str]] = {
    "revision-in-uri": ({"model": {"uri": "hf://google/gemma@main"}}, "its revision in model.revision"),
    "no-scheme": ({"model": {"uri": "gs://bucket/gemma"}}, "model.uri 'gs://bucket/gemma' cannot be read"),
    "empty-prefix": ({"model": {"uri": "s3://bucket/"}}, "cannot be read"),
    "revision-of-a-bucket": ({"model": {**BUCKET, "revision": "v1"}}, "model.revision is of hf:// alone"),
    "revision-up": ({"model": {**HUB, "revision": "a/../b"}}, "model.revision must not contain '..'"),
    "secret-of-a-claim": ({"model": {"uri": "pvc://a/b", "secretRef": {"name": "x"}}}, "opens hf:// and s3://"),
    "secret-name": ({"model": {**HUB, "secretRef": {"name": "Not_A_Name"}}}, "secretRef.name"),
    "two-caches": ({"cache": {"claimName": "a", "sizeLimit": "1Gi"}}, "remove one of them"),
    "no-cache": ({"cache": {}}, "spec.cache"),
    "cache-size": ({"cache": {"sizeLimit": "1G"}}, "cache.sizeLimit"),
    "memory": ({"engine": {"gpuMemoryPercent": 96}}, "engine.gpuMemoryPercent"),
    "kv-dtype": ({"engine": {"kvCacheDtype": "fp8"}}, "engine.kvCacheDtype"),
    "shm": ({"runtime": {"shmSize": "0Gi"}}, "runtime.shmSize"),
    "gpu-resource-of-cpu": ({"runtime": {"gpuResource": "amd.com/gpu"}}, "set cuda"),
    "gpu-resource": ({"runtime": {**CUDA, "gpuResource": "gpu"}}, "runtime.gpuResource"),
    "claim-of-nothing": ({"runtime": {"resourceClaims": [{"name": "a"}]}}, "runtime.resourceClaims a needs"),
    "toleration": ({"placement": {"tolerations": [{"effect": "NoSchedule"}]}}, "tolerates all"),
    "spread-twice": ({"placement": {"spread": 2 * [{"topologyKey": "zone"}]}}, "Duplicate value"),
    "no-placement": ({"placement": {}}, "spec.placement"),
}


def create(plane: ControlPlane, name: str, spec: Object) -> None:
    plane.admin.call("POST", f"{collection('default')}?dryRun=All&fieldValidation=Strict", example(name, **spec))


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(plane: ControlPlane, name: str) -> None:
    create(plane, name, ACCEPTED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_is_wrong(plane: ControlPlane, name: str) -> None:
    spec, words = REFUSED[name]
    with pytest.raises(ApiError) as caught:
        create(plane, name, spec)
    assert caught.value.status == 422
    assert words in str(caught.value)


def test_the_pods_may_exist_where_only_restricted_ones_may(plane: ControlPlane) -> None:
    """As the strictest profile of Pod Security has it; the API server looks at every field of them."""
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    plane.admin.call(
        "POST",
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "restricted", "labels": label}},
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "chat"}}
    plane.admin.call("POST", "/api/v1/namespaces/restricted/serviceaccounts", account)
    template = manifests.pod_template("chat", specs.parse(example("chat", **EVERYTHING)["spec"]), "h", "image:1")
    template["metadata"]["name"] = "chat"
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    answer = plane.admin.call("POST", "/api/v1/namespaces/restricted/pods?dryRun=All&fieldValidation=Strict", pod)
    made = json.loads(answer)
    [step] = made["spec"]["initContainers"]
    assert step["envFrom"] == [{"secretRef": {"name": "hub"}}]
    weak = {**pod, "spec": {**pod["spec"], "securityContext": {"runAsUser": 0}}}
    with pytest.raises(ApiError, match="violates PodSecurity"):
        plane.admin.call("POST", "/api/v1/namespaces/restricted/pods?dryRun=All", weak)
