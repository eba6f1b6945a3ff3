"""Where pods run and with which devices, as fields of a pod's spec."""

from __future__ import annotations

from typing import Any

from shiftoperator import names
from shiftoperator.spec import Placement, ResourceClaim, Spec

Object = dict[str, Any]

SHM_VOLUME = "shm"
SHM_MOUNT = "/dev/shm"  # noqa: S108 - a volume of the pod's own memory


def placed(name: str, placement: Placement) -> Object:
    fields: Object = dict(placement.names)
    if placement.node_selector:
        fields["nodeSelector"] = placement.node_selector
    if placement.tolerations:
        fields["tolerations"] = list(placement.tolerations)
    if placement.spread:
        fields["topologySpreadConstraints"] = [
            {
                "topologyKey": spread.topology_key,
                "maxSkew": spread.max_skew,
                "whenUnsatisfiable": "DoNotSchedule" if spread.required else "ScheduleAnyway",
                "labelSelector": {"matchLabels": names.selector(name)},
                # Pods of the revision before leave: they must not push new ones away from where there is room.
                "matchLabelKeys": ["pod-template-hash"],
            }
            for spread in placement.spread
        ]
    return fields


def claims(spec: Spec) -> Object:
    """Of the pod."""
    asked = spec.runtime.resource_claims
    return {"resourceClaims": [_source(claim) for claim in asked]} if asked else {}


def resources(spec: Spec) -> Object:
    """What the runtime's container gets besides spec.runtime.resources."""
    ours: Object = {}
    if resource := spec.runtime.counted_resource:
        # Extended resources need a limit; the request follows it.
        ours["limits"] = {resource: str(spec.gpus)}
    if spec.runtime.resource_claims:
        ours["claims"] = [_use(claim) for claim in spec.runtime.resource_claims]
    return ours


def shared_memory(spec: Spec) -> tuple[Object, Object] | None:
    """The volume of /dev/shm and its mount. Its pages count against the container's memory."""
    size = spec.runtime.shm_size
    if size is None:
        return None
    volume = {"name": SHM_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return volume, {"name": SHM_VOLUME, "mountPath": SHM_MOUNT}


def _source(claim: ResourceClaim) -> Object:
    kind = "resourceClaimName" if claim.claim is not None else "resourceClaimTemplateName"
    return {"name": claim.name, kind: claim.claim or claim.template}


def _use(claim: ResourceClaim) -> Object:
    return {"name": claim.name} | ({"request": claim.request} if claim.request else {})
