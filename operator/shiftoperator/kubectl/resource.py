"""A ShiftDeployment as kubectl gives it; of its status every field may be missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shiftprotos import contract

Object = dict[str, Any]
# As the operator's bands, from quiet to busy.
BANDS = ("idle", "low", "medium", "high", "full")


@dataclass(frozen=True)
class Condition:
    type: str
    status: str
    reason: str
    message: str
    since: str
    generation: int


@dataclass(frozen=True)
class Deployment:
    namespace: str
    name: str
    generation: int
    spec: Object
    status: Object

    @property
    def observed_generation(self) -> int:
        return int(self.status.get("observedGeneration", 0))

    @property
    def current(self) -> bool:
        """Whether the status speaks of the spec as it is."""
        return self.observed_generation >= self.generation

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """In the order of the contract, then those of a later operator."""
        order = {type_: place for place, type_ in enumerate(contract.CONDITIONS)}
        found = [_condition(told) for told in self.status.get("conditions") or ()]
        return tuple(sorted(found, key=lambda condition: order.get(condition.type, len(order))))

    def condition(self, type_: str) -> Condition | None:
        return next((found for found in self.conditions if found.type == type_), None)

    @property
    def suspended(self) -> bool:
        return bool(self.spec.get("suspend", False))

    @property
    def pods_asked(self) -> int:
        return 0 if self.suspended else self.replicas

    @property
    def replicas(self) -> int:
        return int(self.spec.get("replicas", 1))

    @property
    def ready_pods(self) -> int:
        return int(self.status.get("readyReplicas", 0))

    @property
    def gpus(self) -> int:
        return int(self.part("parallelism").get("gpus", 1))

    @property
    def pods(self) -> list[Object]:
        return list(self.status.get("pods") or ())

    @property
    def decisions(self) -> list[Object]:
        """The newest first."""
        return list(self.status.get("decisions") or ())

    @property
    def policy_generation(self) -> int:
        return int(self.status.get("policyGeneration", 0))

    @property
    def busiest(self) -> str | None:
        bands = [pod["load"] for pod in self.pods if pod.get("load") in BANDS]
        return max(bands, key=BANDS.index, default=None)

    def part(self, field: str) -> Object:
        """An object of the spec; empty where it is not set."""
        return self.spec.get(field) or {}


def read(resource: Object) -> Deployment:
    metadata: Object = resource.get("metadata", {})
    return Deployment(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        generation=int(metadata.get("generation", 0)),
        spec=resource.get("spec") or {},
        status=resource.get("status") or {},
    )


def _condition(told: Object) -> Condition:
    return Condition(
        type=told["type"],
        status=told["status"],
        reason=told["reason"],
        message=told["message"],
        since=told["lastTransitionTime"],
        generation=int(told.get("observedGeneration", 0)),
    )
