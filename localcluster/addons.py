"""Objects that the cluster's own components need in the API: their rights, nothing else."""

from __future__ import annotations

from typing import Any

from localcluster.api import Api

RBAC = "/apis/rbac.authorization.k8s.io/v1"


def apply(api: Api) -> None:
    name = "shift:coredns"
    api.apply(f"{RBAC}/clusterroles/{name}", _role(name, [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]))  # fmt: skip
    api.apply(f"{RBAC}/clusterrolebindings/{name}", _binding(name, role=name, user=name))
    kubelet = "shift:apiserver-to-kubelet"
    api.apply(f"{RBAC}/clusterrolebindings/{kubelet}", _binding(kubelet, role="system:kubelet-api-admin", user=kubelet))


def _role(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    }


def _binding(name: str, role: str, user: str) -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }
