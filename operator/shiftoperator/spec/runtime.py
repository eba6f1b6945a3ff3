"""`spec.runtime`: the container that serves, and the devices that it gets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from shiftoperator.errors import InvalidSpecError

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"
_GPU_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?")
_SHM_SIZE = re.compile(r"[1-9][0-9]{0,5}(Mi|Gi)")


@dataclass(frozen=True)
class ResourceClaim:
    """Devices of Dynamic Resource Allocation: a claim that is there, or a template of which each pod gets its own."""

    name: str
    claim: str | None = None
    template: str | None = None
    # One request of the claim; all of them when left out.
    request: str | None = None


@dataclass(frozen=True)
class Runtime:
    image: str | None = None
    device: str = "cpu"
    resources: dict[str, Any] = field(default_factory=dict)
    env: tuple[dict[str, Any], ...] = ()
    # Of /dev/shm; None leaves the 64 MiB of a container.
    shm_size: str | None = None
    gpu_resource: str | None = None
    resource_claims: tuple[ResourceClaim, ...] = ()

    @property
    def counted_resource(self) -> str | None:
        """The extended resource of which a pod asks for one per rank; None where it gets its devices otherwise."""
        if self.device != "cuda":
            return None
        return self.gpu_resource or (None if self.resource_claims else DEFAULT_GPU_RESOURCE)


def runtime(asked: dict[str, Any]) -> Runtime:
    found = Runtime(
        asked.get("image"),
        asked.get("device", "cpu"),
        asked.get("resources", {}),
        tuple(asked.get("env", ())),
        asked.get("shmSize"),
        asked.get("gpuResource"),
        tuple(_claim(claim) for claim in asked.get("resourceClaims", ())),
    )
    if found.shm_size is not None and not _SHM_SIZE.fullmatch(found.shm_size):
        raise InvalidSpecError(f"runtime.shmSize {found.shm_size!r} is no size; write a number with Mi or Gi")
    if found.gpu_resource is not None and not _GPU_RESOURCE.fullmatch(found.gpu_resource):
        raise InvalidSpecError(
            f"runtime.gpuResource {found.gpu_resource!r} is no resource, as {DEFAULT_GPU_RESOURCE} is"
        )
    if found.gpu_resource is not None and found.device != "cuda":
        raise InvalidSpecError(
            f"runtime.gpuResource {found.gpu_resource!r} is asked for with runtime.device cuda; remove it, or set cuda"
        )
    names = [claim.name for claim in found.resource_claims]
    if len(names) != len(set(names)):
        raise InvalidSpecError(f"runtime.resourceClaims has a name twice among {', '.join(names)}")
    return found


def _claim(asked: dict[str, Any]) -> ResourceClaim:
    claim = ResourceClaim(
        asked["name"], asked.get("resourceClaimName"), asked.get("resourceClaimTemplateName"), asked.get("request")
    )
    if (claim.claim is None) == (claim.template is None):
        raise InvalidSpecError(
            f"runtime.resourceClaims {claim.name} needs resourceClaimName or resourceClaimTemplateName, and not both"
        )
    return claim
