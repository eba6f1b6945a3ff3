"""Where each kind lives in the API."""

from __future__ import annotations

from shiftprotos import contract

_CORE = "/api/v1"
_KINDS = {
    "Pod": (_CORE, "pods"),
    "Service": (_CORE, "services"),
    "Secret": (_CORE, "secrets"),
    "PersistentVolumeClaim": (_CORE, "persistentvolumeclaims"),
    "ServiceAccount": (_CORE, "serviceaccounts"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "ControllerRevision": ("/apis/apps/v1", "controllerrevisions"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Event": ("/apis/events.k8s.io/v1", "events"),
    contract.KIND: (f"/apis/{contract.API_GROUP}/{contract.API_VERSION}", contract.PLURAL),
}


def path(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    """Without a namespace: of all namespaces."""
    prefix, plural = _KINDS[kind]
    parts = [prefix, *(("namespaces", namespace) if namespace else ()), plural, name, subresource]
    return "/".join(part for part in parts if part)


def group_path(kind: str) -> str:
    """Lists what the API server serves of this kind's group and version."""
    return _KINDS[kind][0]
