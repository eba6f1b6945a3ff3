"""What a spec may name, so that naming it is no mistake: one of each kind, under the same ordinary name."""

from __future__ import annotations

import base64

from helpers.control_plane.apiclient import ApiClient
from helpers.spec_properties.values import ORDINARY

_TLS = ("tls.crt", "tls.key", "ca.crt")
_KINDS = (
    ("/apis/node.k8s.io/v1/runtimeclasses", {"handler": ORDINARY}),
    ("/apis/scheduling.k8s.io/v1/priorityclasses", {"value": 1}),
    ("/api/v1/namespaces/{}/secrets", {"data": {name: base64.b64encode(b"x").decode() for name in _TLS}}),
    (
        "/api/v1/namespaces/{}/persistentvolumeclaims",
        {"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}},
    ),
)


async def make_objects(api: ApiClient, namespace: str) -> None:
    """RuntimeClass and PriorityClass belong to no namespace: once per control plane."""
    for path, body in _KINDS:
        await api.call("POST", path.format(namespace), {"metadata": {"name": ORDINARY}, **body})
