"""The metrics pages of an operator and of a pod that have seen everything once, as Prometheus would read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from shiftoperator import status
from shiftoperator.metrics import Metrics
from shiftoperator.snapshot import GearState as ReadGear
from shiftoperator.snapshot import Load, Pod, RuntimeState, Snapshot
from shiftoperator.spec import Policy
from shiftprotos import contract
from shiftruntime.engine.messages import STEP_BUCKETS_SECONDS, EngineState, GearState, LoadState
from shiftruntime.metrics import RequestMetrics
from shiftruntime.server.engine_metrics import EngineCollector

# What a scrape adds: PodMonitors of the chart, or any configuration that reads pods.
TARGET_LABELS = frozenset({"namespace", "pod", "container", "instance", "job"})


@dataclass
class Series:
    """All samples of one name."""

    labels: set[str] = field(default_factory=set)
    values: dict[str, set[str]] = field(default_factory=dict)  # by label


def exported() -> dict[str, Series]:
    """By name as queries use it: with _total, _bucket, _sum and _count."""
    found: dict[str, Series] = {}
    for page, added in ((_operator_page(), set()), (_pod_page(), {"name"})):
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                series = found.setdefault(sample.name, Series())
                series.labels |= sample.labels.keys() | added | TARGET_LABELS
                for label, value in sample.labels.items():
                    series.values.setdefault(label, set()).add(value)
    return found


def _operator_page() -> str:
    metrics = Metrics()
    for outcome in ("ok", "retried", "error"):  # handlers/controller.py
        metrics.reconciles.labels(outcome).inc()
    metrics.scale_decisions.labels("ScaleOut", "HighUtilization").inc()
    resource = {
        "metadata": {"name": "m", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"model": {"uri": "file:///m"}, "parallelism": {"gpus": 2}},
    }
    pod = Pod(name="p", uid="p", ip="10.0.0.1", ready=True, running=True, template_hash="h", scheduled=True)
    state = RuntimeState(
        read_at=0.0,
        ready=True,
        policy=Policy("Auto", None),
        generation_accepted=1,
        generation_applied=1,
        gears=(ReadGear("tp2", 1, 2, 1, 1, 1.0),),
        load=Load(),
    )
    snapshot = Snapshot(resource, {}, (pod,), {pod.uid: state})
    scaling = status.Scaling(False, status.reasons.NOT_DECIDED, "")
    outcome_of = status.Outcome(desired_replicas=1, template_hash="h", policy_generation=1, scaling=scaling)
    built = status.build(snapshot, outcome_of, [], "2030-01-01T00:00:00Z")
    metrics.deployments.show(("n", "m"), status.figures(snapshot, built))
    return _page(metrics.registry)


def _pod_page() -> str:
    registry = CollectorRegistry()
    requests = RequestMetrics(registry)
    for phase in contract.PHASES:
        requests.phase(phase, 1.0)
    registry.register(EngineCollector(_engine_state))
    return _page(registry)


def _engine_state() -> EngineState:
    from shiftcore.policy import Policy as Applied

    gear = GearState("tp2", 1, 2, (), 0, 0, 0.0, 0.0, (0,) * (len(STEP_BUCKETS_SECONDS) + 1))
    load = LoadState(0, 0, 0, 1, 1, 0.0, 0.0, 0.0, 1, 0.0, 0.0, 0.0, 0.0)
    return EngineState(
        policy=Applied(),
        generation_applied=0,
        gears=(gear,),
        base_gear="tp2",
        crossover_tokens=None,
        crossover_reason="",
        crossover_message="",
        threshold_tokens=None,
        threshold_source="Default",
        shifts=0,
        load=load,
        self_check=None,
        draining=False,
    )


def _page(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()
