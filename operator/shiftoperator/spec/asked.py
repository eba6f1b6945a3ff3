"""Single facts of a spec that need not be valid otherwise: what is told while the rest is refused."""

from __future__ import annotations

from typing import Any


def pods_asked(spec: dict[str, Any]) -> int:
    """Of a spec that need not be valid otherwise."""
    return 0 if spec.get("suspend") else replicas_asked(spec)


def replicas_asked(spec: dict[str, Any]) -> int:
    """Of a spec that need not be valid otherwise."""
    replicas = spec.get("replicas", 1)
    return max(0, replicas) if isinstance(replicas, int) else 0


def section(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a spec that need not be valid otherwise; empty when it is no object."""
    found = spec.get(name)
    return found if isinstance(found, dict) else {}


def percentile_asked(spec: dict[str, Any]) -> int:
    """At which the targets are to hold; of a spec that need not be valid otherwise."""
    percentile = slo.get("percentile", 95) if isinstance(slo := spec.get("slo"), dict) else 95
    return percentile if isinstance(percentile, int) else 95
