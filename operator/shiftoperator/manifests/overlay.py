"""Merging a user's pod template over ours, with the list rules that Kubernetes users expect."""

from __future__ import annotations

from typing import Any

# The field that identifies an item, by the name of the list that holds it.
LIST_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


def overlay(base: Any, over: Any, field: str = "") -> Any:
    """`over` wins; objects merge, lists with a known key merge by it, other lists are replaced or, if plain, kept."""
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for name, value in over.items():
            merged[name] = overlay(base[name], value, name) if name in base else value
        return merged
    if isinstance(base, list) and isinstance(over, list) and field in LIST_KEYS:
        return _merge_list(base, over, LIST_KEYS[field])
    return over


def _merge_list(base: list[dict[str, Any]], over: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    changes = {item.get(key): item for item in over}
    merged = [overlay(item, changes.pop(item.get(key))) if item.get(key) in changes else item for item in base]
    return merged + [item for item in over if item.get(key) in changes]
