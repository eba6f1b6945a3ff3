"""What one ShiftDeployment has come to: children and status, without what differs between two good ways there."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from helpers.control_plane.apiclient import ApiClient
from shiftprotos import contract

Object = dict[str, Any]

_CHILDREN = {
    "serviceaccounts": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "deployments": "/apis/apps/v1",
    "pods": "/api/v1",
}
_OF_STATUS = ("policy", "templateHash", "readyReplicas", "replicas", "selector", "adaptive")
# The controller of Deployments counts there.
_COUNTED = "deployment.kubernetes.io/revision"
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def end_state(api: ApiClient, resource: Object, secrets: bool = True) -> Object:
    """`secrets`: with what is in them, which must never change; without for a comparison with another resource."""
    metadata = resource["metadata"]
    query = f"?labelSelector={contract.LABEL_DEPLOYMENT}%3D{metadata['name']}"
    state: Object = {"status": _status(resource.get("status", {})), "spec": resource["spec"]}
    for kind, prefix in _CHILDREN.items():
        found = await api.call("GET", f"{prefix}/namespaces/{metadata['namespace']}/{kind}{query}")
        made = [_child(kind, child, secrets) for child in found["items"]]
        state[kind] = sorted(made, key=lambda child: json.dumps(child, sort_keys=True))
    text = _UID.sub("UID", json.dumps(state, sort_keys=True))
    plain: Object = json.loads(re.sub(rf"\b{metadata['name']}\b", "NAME", text))
    return plain


def _child(kind: str, child: Object, secrets: bool) -> Object:
    metadata = child["metadata"]
    annotations = {k: v for k, v in metadata.get("annotations", {}).items() if k != _COUNTED}
    if kind == "pods":
        conditions = {c["type"]: c["status"] for c in child["status"].get("conditions", ())}
        return {
            "annotations": annotations,
            "ready": conditions.get("Ready"),
            "leaving": "deletionTimestamp" in metadata,
        }
    kept: Object = {
        "name": metadata["name"],
        "labels": metadata.get("labels"),
        "annotations": annotations,
        "finalizers": metadata.get("finalizers"),
        "owners": [owner["name"] for owner in metadata.get("ownerReferences", ())],
        "spec": {k: v for k, v in child.get("spec", {}).items() if k not in ("clusterIP", "clusterIPs")},
    }
    if kind == "secrets":
        data = child.get("data", {})
        kept["data"] = {key: _digest(value) if secrets else bool(value) for key, value in data.items()}
    return kept


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _status(status: Object) -> Object:
    kept = {name: status[name] for name in _OF_STATUS if name in status}
    kept["conditions"] = {c["type"]: f"{c['status']} {c['reason']}" for c in status.get("conditions", ())}
    kept["rejected"] = status.get("rollout", {}).get("rejected")
    return kept
