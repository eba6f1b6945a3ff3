"""The objects that belong to a ShiftDeployment."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.certificates import Certificates
from shiftoperator.manifests.rendered import leaving_seconds_of, speaks_tls
from shiftoperator.manifests.template import DRAIN_MARGIN_SECONDS
from shiftoperator.spec import Spec

Object = dict[str, Any]

# A label that every namespace has.
_NAMESPACE_NAME = "kubernetes.io/metadata.name"
# For so long a pod must have been ready before a rollout goes on.
SETTLE_SECONDS = 10

_VERSIONS = {
    "Deployment": "apps/v1",
    "ControllerRevision": "apps/v1",
    "Service": "v1",
    "Secret": "v1",
    "ServiceAccount": "v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}


@dataclass(frozen=True)
class Control:
    """What guards the control port of the pods."""

    token: str = field(repr=False)
    certificates: Certificates

    def for_pods(self) -> dict[str, bytes]:
        return {contract.CONTROL_TOKEN_KEY: self.token.encode(), **self.certificates.for_pods()}


@dataclass(frozen=True)
class Rolling:
    """How pods are replaced at the moment: with so many beside those asked for, whether that is paused, the template of
    those that serve, what one that leaves may take. None: as of the one template that there is."""

    surge: int = 0
    paused: bool = False
    serving: Object | None = None
    leaving_seconds: int | None = None


NOT_ROLLING = Rolling()


def singletons(name: str) -> tuple[tuple[str, str], ...]:
    """(kind, name) of every child with a fixed name, in the order in which they are applied."""
    return (
        ("ServiceAccount", name),
        ("Secret", names.authority_secret(name)),
        ("Secret", names.control_secret(name)),
        ("NetworkPolicy", name),
        ("Service", name),
        ("Service", names.headless_service(name)),
        ("PodDisruptionBudget", name),
        ("Deployment", name),
    )


def children(
    resource: Object,
    spec: Spec,
    revision: Object,
    control: Control,
    operator_namespace: str,
    metrics_namespaces: tuple[str, ...] = (),
    rolling: Rolling = NOT_ROLLING,
) -> tuple[Object, ...]:
    """Everything that should exist; the Deployment comes last, when all that its pods mount is there.

    `revision` holds the pod template that is to run.
    """
    make = _Maker(resource)
    name = resource["metadata"]["name"]
    template, service = revision["data"]["template"], spec.service
    # Not what the spec asks for: pods may have another revision, for as long as a rollout takes or it is a bad one.
    tls = speaks_tls(template if rolling.serving is None else rolling.serving)
    return (
        make.object("ServiceAccount", name, {"automountServiceAccountToken": False}),
        # Before what is made of it: a certificate must never be in use that could not be made again.
        make.object("Secret", names.authority_secret(name), _secret(control.certificates.as_data())),
        make.object("Secret", names.control_secret(name), _secret(control.for_pods())),
        make.object("NetworkPolicy", name, {"spec": _network_policy(name, operator_namespace, metrics_namespaces)}),
        _annotated(make.object("Service", name, {"spec": _service(name, service.type, tls)}), service.annotations),
        make.object("Service", names.headless_service(name), {"spec": _headless_service(name, tls)}),
        make.object("PodDisruptionBudget", name, {"spec": _disruption_budget(name, spec)}),
        revision,
        deployment(resource, spec, template, rolling),
    )


def deployment(resource: Object, spec: Spec, template: Object, rolling: Rolling = NOT_ROLLING) -> Object:
    name = resource["metadata"]["name"]
    return _Maker(resource).object("Deployment", name, {"spec": _deployment(name, spec, template, rolling)})


def controller_revision(resource: Object, template_hash: str, template: Object, revision: int) -> Object:
    """Keeps a rendered pod template, so that a newer operator goes on with the one that runs."""
    name = names.controller_revision(resource["metadata"]["name"], template_hash)
    made = _Maker(resource).object("ControllerRevision", name, {"revision": revision, "data": {"template": template}})
    made["metadata"]["annotations"] = {contract.ANNOTATION_TEMPLATE_HASH: template_hash}
    return made


class _Maker:
    def __init__(self, resource: Object) -> None:
        self._resource = resource

    def object(self, kind: str, name: str, body: Object) -> Object:
        metadata = {
            "name": name,
            "namespace": self._resource["metadata"]["namespace"],
            "labels": names.labels(self._resource["metadata"]["name"]),
            "ownerReferences": [names.owner_reference(self._resource)],
        }
        return {"apiVersion": _VERSIONS[kind], "kind": kind, "metadata": metadata, **body}


def _secret(data: dict[str, bytes]) -> Object:
    return {"type": "Opaque", "data": {key: base64.b64encode(value).decode() for key, value in data.items()}}


def _annotated(made: Object, annotations: dict[str, str]) -> Object:
    """None without any: the API server shows no empty ones."""
    return {**made, "metadata": {**made["metadata"], "annotations": annotations}} if annotations else made


def _headless_service(name: str, tls: bool) -> Object:
    return {**_service(name, "ClusterIP", tls), "clusterIP": "None"}


def _service(name: str, type_: str, tls: bool) -> Object:
    """Its address is left out: the API server gives one, and we must not take it away again."""
    return {
        "type": type_,
        "selector": names.selector(name),
        "publishNotReadyAddresses": False,
        "ports": [
            {
                "name": "grpc",
                "port": contract.INFERENCE_PORT,
                "targetPort": "grpc",
                "protocol": "TCP",
                # HTTP/2 over TLS is https as well: what is spoken is agreed on in the handshake.
                "appProtocol": "https" if tls else "kubernetes.io/h2c",
            },
            {
                "name": "openai",
                "port": contract.OPENAI_PORT,
                "targetPort": "openai",
                "protocol": "TCP",
                "appProtocol": "https" if tls else "http",
            },
        ],
    }


def _disruption_budget(name: str, spec: Spec) -> Object:
    return {
        # And not minAvailable, with which the only pod of a service could never leave its node.
        "maxUnavailable": spec.max_unavailable,
        # A pod that fails or loads serves nobody: it must not keep a node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": names.selector(name)},
    }


def _network_policy(name: str, operator_namespace: str, metrics_namespaces: tuple[str, ...]) -> Object:
    def ports(*numbers: int) -> list[Object]:
        return [{"port": number, "protocol": "TCP"} for number in numbers]

    operator = {"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: operator_namespace}}}
    readers = sorted({operator_namespace, *metrics_namespaces})
    monitoring = {
        "namespaceSelector": {"matchExpressions": [{"key": _NAMESPACE_NAME, "operator": "In", "values": readers}]}
    }
    return {
        "podSelector": {"matchLabels": names.selector(name)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": ports(contract.INFERENCE_PORT, contract.OPENAI_PORT)},
            {"from": [operator], "ports": ports(contract.CONTROL_PORT)},
            # The kubelet's probes need no rule: what a pod's own node sends is always let through.
            {"from": [monitoring], "ports": ports(contract.OPS_PORT)},
        ],
    }


def _deployment(name: str, spec: Spec, template: Object, rolling: Rolling) -> Object:
    rollout, surge = spec.rollout, rolling.surge
    leaving_seconds = rolling.leaving_seconds
    if leaving_seconds is None:
        leaving_seconds = leaving_seconds_of(template) or rollout.drain_seconds + DRAIN_MARGIN_SECONDS
    return {
        "replicas": spec.pods,
        "selector": {"matchLabels": names.selector(name)},
        "strategy": {
            "type": "RollingUpdate",
            # GPUs are rarely spare: a new pod starts when an old one has given its own back, unless there is room.
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 0 if surge else 1},
        },
        "paused": rolling.paused,
        # A pod that fails right after it was ready must not cost the next one.
        "minReadySeconds": SETTLE_SECONDS,
        "revisionHistoryLimit": 2,
        # A new pod may have to wait until an old one has ended its requests.
        "progressDeadlineSeconds": rollout.progress_deadline_seconds + leaving_seconds,
        "template": template,
    }
