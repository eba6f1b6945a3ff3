"""What moves with the load: metrics instead of status."""

from __future__ import annotations

from collections import defaultdict

from shiftprotos import contract

from shiftoperator.metrics import Figures
from shiftoperator.snapshot import Load, Object, Snapshot
from shiftoperator.spec import pods_asked
from shiftoperator.status.bands import demand
from shiftoperator.status.view import FALSE, TRUE, UNKNOWN

_VALUES = {TRUE: 1.0, FALSE: 0.0, UNKNOWN: -1.0}


def figures(snapshot: Snapshot, built: Object) -> Figures:
    """`built` is the status as it should be."""
    states = [snapshot.states[pod.uid] for pod in snapshot.ready_pods if pod.uid in snapshot.states]
    capacity: defaultdict[str, float] = defaultdict(float)
    for state in states:
        for gear in state.gears:
            capacity[gear.name] += gear.capacity_tokens_per_second
    return {
        contract.METRIC_CONDITION: {c["type"]: _VALUES[c["status"]] for c in built["conditions"]},
        contract.METRIC_PODS: {
            "asked": pods_asked(snapshot.resource["spec"]),
            "live": built.get("replicas", 0),
            "ready": built.get("readyReplicas", 0),
        },
        contract.METRIC_CAPACITY: dict(capacity),
        contract.METRIC_SET_GENERATION: {"": snapshot.status.get("policyGeneration", 0)},
        **_of_loads([state.load for state in states]),
    }


def _of_loads(loads: list[Load]) -> dict[str, dict[str, float]]:
    """Sums, and of times the worst."""
    return {
        contract.METRIC_DEMAND: {"": sum(demand(load) for load in loads)},
        contract.METRIC_DEPLOYMENT_RUNNING: {"": sum(load.running_requests for load in loads)},
        contract.METRIC_DEPLOYMENT_WAITING: {"": sum(load.waiting_requests for load in loads)},
        contract.METRIC_OLDEST_WAIT: {"": max((load.oldest_wait_seconds for load in loads), default=0.0)},
        contract.METRIC_TTFT_P95: {"": max((load.ttft_at(95) for load in loads), default=0.0)},
        contract.METRIC_TPOT_P95: {"": max((load.tpot_at(95) for load in loads), default=0.0)},
    }
