"""What of a ShiftDeployment is told, as plain objects: `-o json` prints them, and the screens are made of them."""

from __future__ import annotations

import re

from shiftcore import scaling
from shiftprotos import contract

from shiftoperator.kubectl.health import Health, health
from shiftoperator.kubectl.meanings import meaning
from shiftoperator.kubectl.opposite import marks, opposite, to_add, to_remove
from shiftoperator.kubectl.resource import Condition, Deployment, Object


def status(deployment: Deployment) -> Object:
    said = deployment.status
    return {
        "namespace": deployment.namespace,
        "name": deployment.name,
        "generation": deployment.generation,
        "observedGeneration": deployment.observed_generation,
        "model": deployment.part("model").get("uri"),
        "gpusPerPod": deployment.gpus,
        "suspended": deployment.suspended,
        "replicas": {
            "asked": deployment.pods_asked,
            "live": said.get("replicas", 0),
            "ready": deployment.ready_pods,
        },
        "policy": policy(deployment),
        "gear": said.get("gear"),
        "load": deployment.busiest,
        "conditions": [_condition(condition) for condition in deployment.conditions],
        "pods": deployment.pods,
        "capacity": said.get("capacity") or [],
        "crossover": said.get("crossover"),
        "slo": deployment.spec.get("slo"),
        "slowestStart": said.get("slowestStart"),
        "lastFailure": said.get("lastFailure"),
    }


def policy(deployment: Deployment) -> Object:
    asked, given = deployment.part("shift"), deployment.status.get("policy") or {}
    return {
        "asked": {"mode": asked.get("policy", "Auto"), "thresholdTokens": asked.get("thresholdTokens")},
        "set": {"mode": given.get("mode"), "thresholdTokens": given.get("thresholdTokens")},
        "schedule": deployment.status.get("schedule"),
        "generation": deployment.policy_generation,
        "inSync": in_sync(deployment),
    }


def schedule_words(told: Object | None) -> str:
    """Of `status.schedule`: which one holds, until when, and what then; empty without schedules."""
    if told is None:
        return ""
    threshold = f" up to {told['thresholdTokens']} tokens" if "thresholdTokens" in told else ""
    now = f"{told['name']} holds ({told.get('policy')}{threshold})" if "name" in told else "none holds"
    if "until" not in told:
        return now
    return f"{now} until {told['until']}, then {told.get('next') or 'spec.shift.policy'}"


def in_sync(deployment: Deployment) -> bool:
    """Whether every ready pod has applied the policy of the spec as it is."""
    told = deployment.condition(contract.CONDITION_POLICY_IN_SYNC)
    return told is not None and told.status == "True" and told.generation >= deployment.generation


def why(deployment: Deployment, type_: str | None = None) -> Object:
    """`type_`: that condition alone, whether it is as it should be or not."""
    of_interest = [
        condition
        for condition in deployment.conditions
        if condition.type == type_ or (type_ is None and health(condition) is not Health.OK)
    ]
    return {
        "namespace": deployment.namespace,
        "name": deployment.name,
        "generation": deployment.generation,
        "observedGeneration": deployment.observed_generation,
        "conditions": [_condition(condition) | _explained(condition) for condition in of_interest],
        "policy": policy(deployment),
        "scaling": _scaling(deployment),
        "decisions": [{**made, "opposite": opposite(deployment, made)} for made in deployment.decisions],
    }


def top(deployment: Deployment) -> Object:
    return {
        "namespace": deployment.namespace,
        "name": deployment.name,
        "policyGeneration": deployment.policy_generation,
        "pods": deployment.pods,
    }


def _condition(condition: Condition) -> Object:
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "since": condition.since,
        "observedGeneration": condition.generation,
        "health": str(health(condition)),
    }


def _explained(condition: Condition) -> Object:
    known = meaning(condition.type, condition.reason)
    if known is None:
        return {"meaning": None, "cure": None}
    return {"meaning": _without_marks(known.meaning), "cure": _without_marks(known.cure)}


def _without_marks(markdown: str) -> str:
    return re.sub(r"`([^`]+)`|\[([^\]]+)\]\([^)]*\)", r"\1\2", markdown)


def _scaling(deployment: Deployment) -> Object:
    told = deployment.condition(contract.CONDITION_SCALING_ACTIVE)
    mode = deployment.part("autoscaling").get("mode", str(scaling.Mode.DISABLED))
    found = marks(deployment)
    decides = mode != scaling.Mode.DISABLED and told is not None and health(told) is not Health.RESTING
    return {
        "mode": mode,
        "reason": None if told is None else told.reason,
        "message": None if told is None else told.message,
        "toAdd": to_add(found) if decides else None,
        "toRemove": to_remove(found) if decides else None,
    }
