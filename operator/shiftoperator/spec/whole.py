"""The whole of a ShiftDeployment's spec, each section read by the module of its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shiftcore.layout import Gear

from shiftoperator.errors import InvalidSpecError
from shiftoperator.spec.asked import pods_asked
from shiftoperator.spec.cache import Cache, cache
from shiftoperator.spec.engine import Engine, engine
from shiftoperator.spec.model import Model, model
from shiftoperator.spec.observability import Logs, logs
from shiftoperator.spec.placement import Placement, placement
from shiftoperator.spec.rollout import Rollout, rollout
from shiftoperator.spec.runtime import Runtime, runtime
from shiftoperator.spec.scaling import Autoscaling, autoscaling, replicas
from shiftoperator.spec.schedules import Schedule, schedules
from shiftoperator.spec.service import Service, service
from shiftoperator.spec.shift import Adaptive, Calibration, Policy, adaptive, base_gear, calibration, policy


@dataclass(frozen=True)
class Spec:
    model: Model
    base_gear: Gear
    # While no schedule holds.
    policy: Policy
    schedules: tuple[Schedule, ...]
    adaptive: Adaptive
    calibration: Calibration
    engine: Engine
    runtime: Runtime
    cache: Cache | None
    placement: Placement
    pod_template: dict[str, Any]
    replicas: int
    autoscaling: Autoscaling
    rollout: Rollout
    logs: Logs
    service: Service
    # Ready pods that an eviction may take away at once.
    max_unavailable: int
    suspend: bool
    # That should run: none while suspended, whatever `replicas` says.
    pods: int

    @property
    def gpus(self) -> int:
        return self.base_gear.ranks


def parse(spec: dict[str, Any]) -> Spec:
    """Raises InvalidSpecError with the offending value and the fix."""
    try:
        return _parse(spec)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Only past another CRD: ours has the type of every field.
        raise InvalidSpecError(
            f"a field has not the type that the CRD gives it: {error}; apply the CRD anew"
        ) from error


def _parse(spec: dict[str, Any]) -> Spec:
    shift = spec.get("shift", {})
    return Spec(
        model=model(spec.get("model", {})),
        base_gear=base_gear(spec.get("parallelism", {})),
        policy=policy(shift),
        schedules=schedules(shift),
        adaptive=adaptive(spec),
        calibration=calibration(shift),
        engine=engine(spec.get("engine", {})),
        runtime=runtime(spec.get("runtime", {})),
        cache=cache(spec.get("cache")),
        placement=placement(spec.get("placement", {})),
        pod_template=spec.get("podTemplate", {}),
        replicas=replicas(spec),
        autoscaling=autoscaling(spec),
        rollout=rollout(spec.get("rollout", {})),
        logs=logs(spec.get("observability", {})),
        service=service(spec.get("service", {})),
        max_unavailable=spec.get("disruption", {}).get("maxUnavailable", 1),
        suspend=bool(spec.get("suspend", False)),
        pods=pods_asked(spec),
    )


def with_policy(spec: Spec, held: Policy) -> Spec:
    """As if the user had asked for this policy."""
    limits = replace(spec.autoscaling.limits, may_shift=held.mode == "Auto")
    return replace(spec, policy=held, autoscaling=replace(spec.autoscaling, limits=limits))
