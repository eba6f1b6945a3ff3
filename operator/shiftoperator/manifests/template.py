"""The pod template of a ShiftDeployment, and the hash that says when pods must be replaced.

The hash covers the fields of the spec that pods depend on, not the rendered text: a newer operator that renders another
template for the same spec must not restart pods. Shift policy, replicas and scaling are not among these fields.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.manifests import fetching, overrides, placing
from shiftoperator.manifests.overlay import overlay
from shiftoperator.spec import TLS_AUTHORITY, TLS_CERTIFICATE, TLS_KEY, Calibration, ServingTls, Spec, section

POD_FIELDS = ("model", "parallelism", "engine", "runtime", "cache", "placement", "podTemplate")
# Of sections that are live otherwise. None has a default in the CRD: the API server would fill it into stored objects.
POD_PARTS = {
    "rollout": ("restartedAt", "drainSeconds"),
    "shift": ("calibration",),
    "observability": ("logs",),
    "service": ("tls",),
}
_NONROOT = 65532
# In the pod's own volume, which outlives its containers.
_KEPT_CALIBRATION = "/tmp/calibration.json"  # noqa: S108 - see the mount
# Big models load for long; the runtime itself gives up earlier and says why.
_START_SECONDS = 3600
# Beyond its requests: the last words of a drain, and the ranks' end.
DRAIN_MARGIN_SECONDS = 30


def template_hash(spec: dict[str, Any]) -> str:
    """Over the raw fields, so that a new default of the operator changes nothing. What is empty says as much as what is
    left out, and clientAuth None as much as none."""
    return _digest(_counted(_pod_parts(spec)))


def _counted(written: dict[str, Any]) -> dict[str, Any]:
    parts = {name: _without_empty(part) for name, part in written.items()}
    if (tls := section(section(parts, "service"), "tls")) and "clientAuth" not in tls:
        parts["service"] = {"tls": {**tls, "clientAuth": "None"}}
    return {name: part for name, part in parts.items() if part}


def template_hashes(spec: dict[str, Any]) -> tuple[str, ...]:
    """Names of the same template: the one it gets today, then that of operators that counted what is empty, if any is.

    Pods with such a hash stay (ADR 14). They are replaced when what is empty is taken out of the spec, as by those
    operators: a hash does not tell which empty fields are in it.
    """
    parts = _pod_parts(spec)
    counted = _counted(parts)
    return (_digest(counted), _digest(parts)) if counted != parts else (_digest(parts),)


def _pod_parts(spec: dict[str, Any]) -> dict[str, Any]:
    """The fields that pods depend on, as they are written."""
    chosen = {name: spec[name] for name in POD_FIELDS if spec.get(name)}
    for name, fields in POD_PARTS.items():
        asked = section(spec, name)
        if part := {field: asked[field] for field in fields if field in asked}:
            chosen[name] = part
    return chosen


def _without_empty(part: Any) -> Any:
    """Of a section the fields that say something. Not deeper: inside of podTemplate `emptyDir: {}` is a choice."""
    return {name: value for name, value in part.items() if value not in ({}, [])} if isinstance(part, dict) else part


def _digest(chosen: dict[str, Any]) -> str:
    canonical = json.dumps(chosen, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[: names.TEMPLATE_HASH_LENGTH]


def pod_template(name: str, spec: Spec, hash_: str, default_image: str) -> dict[str, Any]:
    """Raises InvalidSpecError for a podTemplate that cannot be merged or is about things that are not its to set."""
    grace = spec.rollout.drain_seconds + DRAIN_MARGIN_SECONDS
    overrides.check(spec.pod_template, _taken(spec), grace)
    container = _container(name, spec, default_image)
    steps = {"initContainers": [fetching.fetch_step(spec, container)]} if spec.model.fetched else {}
    ours = {
        "metadata": {
            "labels": names.labels(name),
            "annotations": {contract.ANNOTATION_TEMPLATE_HASH: hash_},
        },
        "spec": {
            "serviceAccountName": name,
            "automountServiceAccountToken": False,
            # Environment variables of every Service in the namespace are of no use and slow container start.
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _NONROOT,
                "runAsGroup": _NONROOT,
                "seccompProfile": {"type": "RuntimeDefault"},
                **fetching.pod_security(spec, _NONROOT),
            },
            **steps,
            "containers": [container],
            "volumes": _volumes(name, spec),
            **placing.claims(spec),
            **placing.placed(name, spec.placement),
        },
    }
    return _keep_identity(overlay(ours, spec.pod_template), ours)


def _volumes(name: str, spec: Spec) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        # Readable by everyone in the pod instead of an fsGroup: that would re-group the files of every mounted volume.
        {"name": "control", "secret": {"secretName": names.control_secret(name), "defaultMode": 0o444}},
    ]
    if spec.service.tls is not None:
        secret = {"secretName": spec.service.tls.secret, "defaultMode": 0o444}
        volumes.append({"name": names.SERVING_TLS_VOLUME, "secret": secret})
    if spec.model.claim:
        claim = {"claimName": spec.model.claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    if fetching.has_cache(spec):
        volumes.append(fetching.cache_volume(spec))
    if shared := placing.shared_memory(spec):
        volumes.append(shared[0])
    return volumes


def _taken(spec: Spec) -> overrides.Taken:
    """What the operator renders besides what every pod has."""
    volumes, mounts, sealed, steps = [], [], [], []
    if spec.service.tls is not None:
        volumes.append(names.SERVING_TLS_VOLUME)
        sealed.append(names.SERVING_TLS_MOUNT)
    if spec.model.claim:
        volumes.append("models")
        mounts.append(names.MODELS_MOUNT)
    if fetching.has_cache(spec):
        volumes.append(names.CACHE_VOLUME)
        mounts.append(names.CACHE_MOUNT)
    if spec.runtime.shm_size is not None:
        volumes.append(placing.SHM_VOLUME)
        mounts.append(placing.SHM_MOUNT)
    if spec.model.fetched:
        steps.append(names.FETCH_CONTAINER)
    return overrides.Taken(tuple(volumes), tuple(mounts), tuple(sealed), tuple(steps))


def _keep_identity(merged: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Labels and annotations by which we find our pods are not the user's to change."""
    for part in ("labels", "annotations"):
        merged["metadata"][part] = {**merged["metadata"][part], **ours["metadata"][part]}
    return merged


def _container(name: str, spec: Spec, default_image: str) -> dict[str, Any]:
    return {
        "name": names.RUNTIME_CONTAINER,
        "image": spec.runtime.image or default_image,
        "command": ["shift-runtime"],
        "args": list(arguments(name, spec)),
        "env": _environment(spec),
        "ports": [
            {"name": "grpc", "containerPort": contract.INFERENCE_PORT, "protocol": "TCP"},
            {"name": "openai", "containerPort": contract.OPENAI_PORT, "protocol": "TCP"},
            {"name": "control", "containerPort": contract.CONTROL_PORT, "protocol": "TCP"},
            {"name": "ops", "containerPort": contract.OPS_PORT, "protocol": "TCP"},
        ],
        "resources": overlay(placing.resources(spec), spec.runtime.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": contract.TERMINATION_LOG_PATH,
        # A crash that wrote no reason still shows its last lines.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "startupProbe": _probe("/livez", period=2, failures=_START_SECONDS // 2),
        "readinessProbe": _probe("/readyz", period=2, failures=2),
        # The runtime fails by itself when a rank stands still; this catches only a process that no longer answers.
        "livenessProbe": _probe("/livez", period=10, failures=6),
        "volumeMounts": _mounts(spec),
    }


def _mounts(spec: Spec) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of its own, the root is read-only
        {"name": "control", "mountPath": names.CONTROL_MOUNT, "readOnly": True},
    ]
    if spec.service.tls is not None:
        mounts.append({"name": names.SERVING_TLS_VOLUME, "mountPath": names.SERVING_TLS_MOUNT, "readOnly": True})
    if spec.model.claim:
        mounts.append({"name": "models", "mountPath": names.MODELS_MOUNT, "readOnly": True})
    if fetching.has_cache(spec):
        mounts.append(fetching.cache_mount())
    if shared := placing.shared_memory(spec):
        mounts.append(shared[1])
    return mounts


def arguments(name: str, spec: Spec) -> tuple[str, ...]:
    """The runtime's command line. Policy and threshold are missing on purpose: they are set live."""
    arguments = ["serve", spec.model.location(names.MODELS_MOUNT)]
    if spec.model.fetched:
        # What the step before this container has fetched, whatever the hub or bucket has by now.
        arguments.append("--offline")
    if not spec.engine.prefix_caching:
        arguments.append("--no-prefix-cache")
    options: dict[str, Any] = {
        "--ranks": spec.gpus,
        "--base-gear": spec.base_gear.name,
        "--device": spec.runtime.device,
        "--dtype": spec.model.dtype,
        "--quantization": spec.model.quantization,
        "--served-name": spec.model.served_name,
        "--max-num-seqs": spec.engine.max_num_seqs,
        "--max-batched-tokens": spec.engine.max_batched_tokens,
        "--max-model-len": spec.engine.max_model_len,
        "--kv-memory-percent": spec.engine.gpu_memory_percent,
        "--kv-cache-dtype": spec.engine.kv_cache_dtype,
        "--drain-seconds": spec.rollout.drain_seconds,
        # The runtime listens on loopback unless told otherwise.
        "--host": "0.0.0.0",  # noqa: S104 - the NetworkPolicy says who may connect
        "--port": contract.INFERENCE_PORT,
        "--control-port": contract.CONTROL_PORT,
        "--ops-port": contract.OPS_PORT,
        "--calibration": _calibration_file(name, spec),
        "--log-format": spec.logs.format,
        "--log-level": spec.logs.level,
        **_tls_options(spec.service.tls),
        **fetching.cache_options(spec),
    }
    for option, value in options.items():
        if value is not None:
            arguments += [option, str(value)]
    flags = {"--no-calibration": spec.calibration is Calibration.OFF, "--log-requests": spec.logs.requests}
    return (*arguments, *(flag for flag, wanted in flags.items() if wanted))


def _tls_options(tls: ServingTls | None) -> dict[str, str]:
    if tls is None:
        return {}
    folder = names.SERVING_TLS_MOUNT
    files = {"--tls-cert": f"{folder}/{TLS_CERTIFICATE}", "--tls-key": f"{folder}/{TLS_KEY}"}
    return files | ({"--tls-client-ca": f"{folder}/{TLS_AUTHORITY}"} if tls.asks_clients else {})


def _calibration_file(name: str, spec: Spec) -> str | None:
    if spec.calibration is not Calibration.KEEP:
        return None
    # A claim may be shared by several ShiftDeployments; costs of one hold for no other.
    return f"{names.CACHE_MOUNT}/calibration-{name}.json" if fetching.has_cache(spec) else _KEPT_CALIBRATION


def _environment(spec: Spec) -> list[dict[str, Any]]:
    ours: list[dict[str, Any]] = [
        {"name": contract.ENV_CONTROL_TOKEN_FILE, "value": f"{names.CONTROL_MOUNT}/{contract.CONTROL_TOKEN_KEY}"},
        {"name": contract.ENV_CONTROL_TLS_FOLDER, "value": names.CONTROL_MOUNT},
        {
            "name": contract.ENV_POD_NAME,
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
        },
        {"name": contract.ENV_TERMINATION_LOG, "value": contract.TERMINATION_LOG_PATH},
    ]
    return ours + [variable for variable in spec.runtime.env if variable["name"] not in overrides.RESERVED_ENVIRONMENT]


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "ops", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "successThreshold": 1,
        "failureThreshold": failures,
    }
