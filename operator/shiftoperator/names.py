"""Names, labels and annotations of the objects that belong to one ShiftDeployment."""

from __future__ import annotations

from typing import Any, NamedTuple

from shiftprotos import contract

RUNTIME_CONTAINER = "runtime"
TEMPLATE_HASH_LENGTH = 10
FETCH_CONTAINER = "shift-fetch"
MODELS_MOUNT = "/models"
CACHE_MOUNT = "/cache"
CACHE_VOLUME = "cache"
CONTROL_MOUNT = "/run/shift/control"
# Of the certificate for clients, where there is one.
SERVING_TLS_VOLUME = "serving-tls"
SERVING_TLS_MOUNT = "/run/shift/tls"


class Key(NamedTuple):
    """Identifies one ShiftDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def headless_service(name: str) -> str:
    return f"{name}-headless"


def control_secret(name: str) -> str:
    return f"{name}-control"


def authority_secret(name: str) -> str:
    """What signs the control channel's certificates, and the operator's own; no pod mounts it."""
    return f"{name}-control-ca"


def controller_revision(name: str, template_hash: str) -> str:
    return f"{name}-{template_hash}"


def selector(name: str) -> dict[str, str]:
    """Labels that find the pods; a Deployment cannot change them later."""
    return {contract.LABEL_NAME: contract.RUNTIME_NAME, contract.LABEL_DEPLOYMENT: name}


def selector_text(name: str) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(selector(name).items()))


def labels(name: str) -> dict[str, str]:
    return {
        **selector(name),
        contract.LABEL_INSTANCE: name,
        contract.LABEL_COMPONENT: "runtime",
        contract.LABEL_MANAGED_BY: contract.MANAGED_BY,
    }


def owner_reference(deployment: dict[str, Any]) -> dict[str, Any]:
    """Makes the garbage collector delete the child with its ShiftDeployment."""
    return {
        "apiVersion": f"{contract.API_GROUP}/{contract.API_VERSION}",
        "kind": contract.KIND,
        "name": deployment["metadata"]["name"],
        "uid": deployment["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
