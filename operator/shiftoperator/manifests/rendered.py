"""What a stored pod template says of its pods, whatever the spec asks for by now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shiftoperator import names

Object = dict[str, Any]


def speaks_tls(template: Object) -> bool:
    """Whether the ports for clients do."""
    return "--tls-cert" in _arguments(template)


def leaving_seconds_of(template: Object) -> int | None:
    """How long a pod may take to end; None where the template does not say."""
    found = template.get("spec", {}).get("terminationGracePeriodSeconds")
    return None if found is None else int(found)


def gpus_of(template: Object) -> int | None:
    """Ranks of a pod; None where the template does not say."""
    arguments = _arguments(template)
    return int(arguments[arguments.index("--ranks") + 1]) if "--ranks" in arguments[:-1] else None


def _arguments(template: Object) -> Sequence[str]:
    containers: list[Object] = template.get("spec", {}).get("containers", [])
    found: Sequence[str] = next((c.get("args", ()) for c in containers if c["name"] == names.RUNTIME_CONTAINER), ())
    return found
