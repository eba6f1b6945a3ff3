"""The step that fetches a model before the runtime starts, and the volume that it fetches into."""

from __future__ import annotations

from typing import Any

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.spec import Spec

Object = dict[str, Any]

# Of the runtime's, those that the step needs.
_VOLUMES = ("tmp", "control", names.CACHE_VOLUME)
_MODELS = f"{names.CACHE_MOUNT}/models"


def has_cache(spec: Spec) -> bool:
    return spec.cache is not None or spec.model.fetched


def cache_volume(spec: Spec) -> Object:
    if spec.cache is not None and spec.cache.claim is not None:
        return {"name": names.CACHE_VOLUME, "persistentVolumeClaim": {"claimName": spec.cache.claim}}
    limit = spec.cache.size_limit if spec.cache is not None else None
    return {"name": names.CACHE_VOLUME, "emptyDir": {"sizeLimit": limit} if limit else {}}


def cache_mount() -> Object:
    return {"name": names.CACHE_VOLUME, "mountPath": names.CACHE_MOUNT}


def pod_security(spec: Spec, user: int) -> Object:
    """Of a claim for the cache alone: a new volume belongs to root, and its files are few, and ours."""
    if spec.cache is None or spec.cache.claim is None:
        return {}
    return {"fsGroup": user, "fsGroupChangePolicy": "OnRootMismatch"}


def cache_options(spec: Spec) -> Object:
    """Of `serve`."""
    return {"--model-cache": _MODELS} if spec.model.fetched else {}


def fetch_step(spec: Spec, runtime: Object) -> Object:
    """An init container like the runtime's, which alone gets the Secret that opens the hub or bucket."""
    arguments = ["fetch", spec.model.location(names.MODELS_MOUNT), "--model-cache", _MODELS]
    if spec.cache is not None and spec.cache.limit_bytes is not None:
        arguments += ["--limit", str(spec.cache.limit_bytes)]
    # Of spec.observability.logs what it knows: it has no requests.
    arguments += ["--log-format", spec.logs.format] if spec.logs.format is not None else []
    arguments += ["--log-level", spec.logs.level] if spec.logs.level is not None else []
    # The operator asks it how far it is, as it asks the runtime later.
    arguments += ["--host", "0.0.0.0", "--control-port", str(contract.CONTROL_PORT)]  # noqa: S104
    alike = ("image", "command", "env", "securityContext", "terminationMessagePath", "terminationMessagePolicy")
    step = {"name": names.FETCH_CONTAINER, **{key: runtime[key] for key in alike}, "args": arguments}
    step["volumeMounts"] = [mount for mount in runtime["volumeMounts"] if mount["name"] in _VOLUMES]
    step["resources"] = _without_devices(spec.runtime.resources)
    if spec.model.secret is not None:
        step["envFrom"] = [{"secretRef": {"name": spec.model.secret}}]
    return step


def _without_devices(resources: Object) -> Object:
    """A pod is given the larger of what its steps and its containers ask for; this step needs no accelerator."""
    return {
        part: {name: amount for name, amount in amounts.items() if "/" not in name}
        for part, amounts in resources.items()
    }
