"""What a workload left behind, without what differs between two good runs: times, uids, addresses, key bytes."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from helpers.control_plane.apiclient import ApiClient
from helpers.control_plane.audit import AuditLog, Request
from helpers.control_plane.runtime import Runtime
from shiftprotos import contract

Object = dict[str, Any]

CHILDREN = {
    "deployments": "/apis/apps/v1",
    "controllerrevisions": "/apis/apps/v1",
    "services": "/api/v1",
    "secrets": "/api/v1",
    "serviceaccounts": "/api/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "pods": "/api/v1",
    "shiftdeployments": "/apis/shiftparallel.dev/v1alpha1",
}
_TIMES = {"lastTransitionTime", "time", "loadSince", "podStartedAt", "startedAt", "finishedAt", "creationTimestamp"}
_POD_NAME = re.compile(r"\b([a-z]+)-[0-9a-f]{6,10}-[a-z0-9]{5}\b")
_ADDRESS = re.compile(r"\b(127|10)(\.\d+){3}\b")


async def gather(api: ApiClient, namespace: str, runtimes: Iterable[Runtime], count_generations: bool) -> Object:
    """By kind and name."""
    found: dict[str, list[Object]] = {}
    for kind, prefix in CHILDREN.items():
        found[kind] = (await api.call("GET", f"{prefix}/namespaces/{namespace}/{kind}"))["items"]
    owners = {obj["metadata"]["uid"]: obj["metadata"]["name"] for obj in found["shiftdeployments"]}
    state: Object = {kind: _objects(kind, objects, owners) for kind, objects in found.items()}
    generation = max((o.get("status", {}).get("policyGeneration", 0) for o in found["shiftdeployments"]), default=0)
    keys = {_key(secret) for secret in found["secrets"]}
    state["runtimes"] = sorted(_runtime(runtime, keys) for runtime in runtimes)
    text = json.dumps(state, sort_keys=True).replace(namespace, "NAMESPACE")
    text = _ADDRESS.sub("ADDRESS", _POD_NAME.sub(r"\1-POD", text))
    if not count_generations:
        text = text.replace(f'"policyGeneration": {generation}', '"policyGeneration": "latest"')
        text = text.replace(f"generation {generation}", "generation latest")
    plain: Object = json.loads(text)
    return plain


def _objects(kind: str, objects: list[Object], owners: dict[str, str]) -> Any:
    if kind == "pods":
        return sorted((_pod(pod) for pod in objects), key=str)
    if kind == "serviceaccounts":
        objects = [obj for obj in objects if obj["metadata"]["name"] != "default"]
    return {obj["metadata"]["name"]: _child(kind, obj, owners) for obj in objects}


def _child(kind: str, obj: Object, owners: dict[str, str]) -> Object:
    metadata = obj["metadata"]
    kept: Object = {
        "labels": metadata.get("labels"),
        "annotations": metadata.get("annotations"),
        "finalizers": metadata.get("finalizers"),
        "deleting": "deletionTimestamp" in metadata,
        "owners": [owners.get(owner["uid"], "of a former one") for owner in metadata.get("ownerReferences", ())],
        "spec": {k: v for k, v in obj.get("spec", {}).items() if k not in ("clusterIP", "clusterIPs")},
        "data": obj.get("data"),
        # The number of a revision, the type of a Secret.
        **{key: value for key, value in obj.items() if key not in ("metadata", "spec", "data", "status")},
    }
    if kind == "secrets":
        kept["data"] = sorted(key for key, value in obj.get("data", {}).items() if value)
    if kind == "deployments":
        # Not how many are available: a pod counts as that only some seconds after it is ready.
        counted = ("replicas", "updatedReplicas", "readyReplicas")
        kept["status"] = {key: obj["status"].get(key, 0) for key in counted}
    if kind == "shiftdeployments":
        status = _status(obj.get("status", {}))
        if set(status.get("rollout", {})) <= {"goodRevision"}:
            status.pop("rollout", None)  # the same: it stands there once pods were ready for some seconds
        kept |= {"generation": metadata["generation"], "status": status}
    return kept


def _pod(pod: Object) -> Object:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
    annotations = pod["metadata"].get("annotations", {})
    return {
        "annotations": {key: "set" if "retiring" in key else value for key, value in annotations.items()},
        "ready": conditions.get("Ready"),
        "deleting": "deletionTimestamp" in pod["metadata"],
    }


def _status(status: Any) -> Any:
    if isinstance(status, dict):
        return {key: _status(value) for key, value in status.items() if key not in _TIMES}
    if isinstance(status, list):
        parts = [_status(item) for item in status]
        return sorted(parts, key=lambda p: re.sub(_POD_NAME, "", str(p))) if parts and "ready" in parts[0] else parts
    return status


def _key(secret: Object) -> str:
    return base64.b64decode(secret.get("data", {}).get(contract.CONTROL_TOKEN_KEY, "")).decode()


def _runtime(runtime: Runtime, keys: set[str]) -> str:
    policy = runtime.policy
    return (
        f"mode {policy.mode} threshold {policy.threshold_tokens} generation {policy.generation} "
        f"draining {runtime.draining} conflicting pushes {runtime.conflicts} present key {runtime.token in keys}"
    )


def counts(audit: AuditLog, since: int, namespace: str, user: str) -> Counter[str]:
    """What the operator created and deleted, and the pods that were made for it."""
    marker = f'"{namespace}"'.encode()
    return Counter(
        text for r in audit.requests(since, marker=marker) if r.namespace == namespace and (text := _counted(r, user))
    )


def _counted(request: Request, user: str) -> str:
    if request.resource in ("events", "leases") or request.subresource or "dryRun=All" in request.uri:
        return ""
    if request.resource == "pods" and request.verb == "create" and request.code == 201:
        return "pods created"
    if request.user != user:
        return ""
    if request.code == 201:
        return f"{request.path} created"
    if request.verb in ("delete", "deletecollection") and request.code < 300:
        return f"{request.path} deleted"
    return ""


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(expected.keys() | found.keys())
        return [d for key in keys for d in differences(expected.get(key), found.get(key), f"{where}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [d for i, (e, f) in pairs for d in differences(e, f, f"{where}[{i}]")]
    return [] if expected == found else [f"{where}: expected {_short(expected)}, found {_short(found)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}…"
