"""What a pod template refers to and does not bring along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shiftoperator import names

Object = dict[str, Any]


def secrets_named(template: Object, deployment: str) -> tuple[str, ...]:
    """Secrets without which pods do not start, in order and without the operator's own.

    Those of imagePullSecrets are not among them: a node may have the image.
    """
    spec = template.get("spec", {})
    found = [*_of_volumes(spec.get("volumes") or ())]
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or ():
            found += [
                *(_reference(variable.get("valueFrom"), "secretKeyRef") for variable in container.get("env") or ()),
                *(_reference(source, "secretRef") for source in container.get("envFrom") or ()),
            ]
    return tuple(sorted({name for name in found if name} - {names.control_secret(deployment)}))


def _of_volumes(volumes: Any) -> Iterator[str]:
    for volume in volumes:
        yield _reference(volume, "secret", "secretName")
        for source in (volume.get("projected") or {}).get("sources") or ():
            yield _reference(source, "secret")


def _reference(holder: Any, field: str, key: str = "name") -> str:
    """The name, unless it may be missing."""
    reference = (holder or {}).get(field) or {}
    return "" if reference.get("optional") else str(reference.get(key) or "")
