"""What a user's pod template may not be: of another shape than ours, or about things that are not its to set.

The CRD refuses part of this; it cannot look into fields that it only passes on.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.errors import InvalidSpecError
from shiftoperator.manifests.overlay import LIST_KEYS

Object = dict[str, Any]

RESERVED_ENVIRONMENT = (
    contract.ENV_CONTROL_TOKEN_FILE, contract.ENV_CONTROL_TLS_FOLDER, contract.ENV_POD_NAME,
    contract.ENV_TERMINATION_LOG,
)  # fmt: skip
_ROOT = "podTemplate"
_POD_LISTS = (
    "containers", "initContainers", "volumes", "imagePullSecrets", "hostAliases", "topologySpreadConstraints",
    "tolerations",
)  # fmt: skip
_CONTAINER_LISTS = ("env", "envFrom", "volumeMounts", "volumeDevices", "ports")
# Keys of the runtime's container, and what to do instead.
_OWNED = {
    "image": "set spec.runtime.image",
    "command": "the operator writes it",
    "args": "set spec.engine, spec.model and spec.parallelism",
    "terminationMessagePath": "the runtime writes there why it ended",
    "terminationMessagePolicy": "the runtime writes there why it ended",
}
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_HANDLERS = ("httpGet", "exec", "tcpSocket", "grpc")
_PORTS = {
    "grpc": contract.INFERENCE_PORT,
    "openai": contract.OPENAI_PORT,
    "control": contract.CONTROL_PORT,
    "ops": contract.OPS_PORT,
}


@dataclass(frozen=True)
class Taken:
    """Names of volumes, mount paths and init containers that the operator renders for this spec; `sealed` are mounts
    into which nothing else may be mounted."""

    volumes: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


def check(template: Any, taken: Taken, grace_seconds: int) -> None:
    """Raises InvalidSpecError that names the path of what is wrong. `grace_seconds` is what a pod needs to end its
    requests."""
    _check_shape(template)
    spec = template.get("spec", {})
    if spec.get("hostNetwork"):
        raise _refused(f"{_ROOT}.spec.hostNetwork", "the pods' fixed ports would clash on a node")
    if spec.get("restartPolicy", "Always") != "Always":
        raise _refused(f"{_ROOT}.spec.restartPolicy", "it must be Always in a Deployment")
    grace = spec.get("terminationGracePeriodSeconds", grace_seconds)
    if not isinstance(grace, int) or grace < grace_seconds:
        why = f"{_shown(grace)} is less than the {grace_seconds} s that a drain needs; set spec.rollout.drainSeconds"
        raise _refused(f"{_ROOT}.spec.terminationGracePeriodSeconds", why)
    for index, volume in enumerate(spec.get("volumes", ())):
        if volume["name"] in ("control", *taken.volumes):
            raise _refused(f"{_ROOT}.spec.volumes[{index}]", f"the name {volume['name']} is the operator's")
    for where, container in _containers(spec, "containers"):
        if container.get("name") == names.RUNTIME_CONTAINER:
            _check_owned(container, where, taken)
            _check_runtime(container, where)
    for where, container in _containers(spec, "initContainers"):
        if container.get("name") in taken.steps:
            _check_owned(container, where, taken)


# --- shape ---


def _check_shape(template: Any) -> None:
    _check_object(template, _ROOT)
    for part in ("metadata", "spec"):
        _check_object(template.get(part, {}), f"{_ROOT}.{part}")
    for part in ("labels", "annotations"):
        _check_object(template.get("metadata", {}).get(part, {}), f"{_ROOT}.metadata.{part}")
    spec = template.get("spec", {})
    _check_security(spec, f"{_ROOT}.spec")
    for name in _POD_LISTS:
        _check_list(spec, name, f"{_ROOT}.spec")
    for kind in ("containers", "initContainers"):
        for where, container in _containers(spec, kind):
            _check_security(container, where)
            for name in _CONTAINER_LISTS:
                _check_list(container, name, where)


def _check_security(parent: Object, where: str) -> None:
    # null takes ours away, which is the user's right.
    if parent.get("securityContext") is not None:
        _check_object(parent["securityContext"], f"{where}.securityContext")


def _check_list(parent: Object, name: str, where: str) -> None:
    if name not in parent:
        return
    if not isinstance(parent[name], list):
        raise InvalidSpecError(f"{where}.{name} must be a list of objects, not {_shown(parent[name])}")
    for index, item in enumerate(parent[name]):
        here = f"{where}.{name}[{index}]"
        _check_object(item, here)
        key = LIST_KEYS.get(name)
        if key is not None and not isinstance(item.get(key), (str, int)):
            raise InvalidSpecError(f"{here}.{key} must say which item this is, not {_shown(item.get(key))}")


def _check_object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise InvalidSpecError(f"{where} must be an object, not {_shown(value)}")


def _containers(spec: Object, kind: str) -> Iterator[tuple[str, Object]]:
    for index, container in enumerate(spec.get(kind, ())):
        yield f"{_ROOT}.spec.{kind}[{index}]", container


# --- what is not the user's ---


def _check_owned(container: Object, where: str, taken: Taken) -> None:
    """Of a container that the operator renders."""
    for name, instead in _OWNED.items():
        if name in container:
            raise _refused(f"{where}.{name}", instead)
    for index, variable in enumerate(container.get("env", ())):
        if variable["name"] in RESERVED_ENVIRONMENT:
            raise _refused(f"{where}.env[{index}]", f"the operator sets {variable['name']}")
    for index, mount in enumerate(container.get("volumeMounts", ())):
        path = posixpath.normpath(str(mount["mountPath"]))
        sealed = (names.CONTROL_MOUNT, *taken.sealed)
        inside = tuple(f"{mount}/" for mount in sealed)
        if path in (contract.TERMINATION_LOG_PATH, *sealed, *taken.mounts) or path.startswith(inside):
            raise _refused(f"{where}.volumeMounts[{index}]", f"the operator mounts {mount['mountPath']}")


def _check_runtime(container: Object, where: str) -> None:
    for index, port in enumerate(container.get("ports", ())):
        if port.get("name") in _PORTS or port["containerPort"] in _PORTS.values():
            raise _refused(f"{where}.ports[{index}]", "its name or number is one of the runtime's own ports")
    for probe in _PROBES:
        handler = next((h for h in _HANDLERS if h in _object(container, probe, where)), None)
        if handler is not None:
            raise _refused(f"{where}.{probe}.{handler}", "the operator knows how to ask; set periods and thresholds")
    for part in ("requests", "limits"):
        if part in _object(container, "resources", where):
            raise _refused(f"{where}.resources.{part}", f"set spec.runtime.resources.{part}")


def _object(parent: Object, name: str, where: str) -> Object:
    value: Object = parent.get(name, {})
    _check_object(value, f"{where}.{name}")
    return value


def _refused(where: str, why: str) -> InvalidSpecError:
    return InvalidSpecError(f"{where} cannot be set: {why}; remove it")


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
