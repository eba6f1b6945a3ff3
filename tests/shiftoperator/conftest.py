"""A ShiftDeployment, its pods and what they say, to be varied by each test; a controller over a stand-in."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from shiftoperator import certificates, manifests
from shiftoperator.handlers import Controller
from shiftoperator.metrics import Metrics
from shiftoperator.snapshot import GearState, Load, Pod, RuntimeState, SelfCheck, Snapshot
from shiftoperator.spec import Policy

from .recorder import Recorder

Object = dict[str, Any]

RESOURCE: Object = {
    "apiVersion": "shiftparallel.dev/v1alpha1",
    "kind": "ShiftDeployment",
    "metadata": {"name": "gemma", "namespace": "team", "uid": "u1", "generation": 3, "resourceVersion": "7"},
    "spec": {
        "model": {"uri": "pvc://models/sub/gemma.gguf", "servedName": "gemma-270m", "dtype": "auto"},
        "parallelism": {"gpus": 2},
        "shift": {"policy": "Auto", "thresholdTokens": 64},
        "engine": {"maxNumSeqs": 16, "maxBatchedTokens": 512},
        "runtime": {"image": "runtime:1", "device": "cpu", "resources": {"requests": {"cpu": "200m"}}},
        "replicas": 1,
        "autoscaling": {"mode": "Apply", "min": 1, "max": 2, "windows": {"scaleOutSeconds": 5, "scaleInSeconds": 20}},
        "slo": {"ttftMs": 2000, "tpotMs": 400},
    },
}

CONTROL = manifests.Control("t" * 40, certificates.renewed(None, "team/gemma", datetime(2026, 1, 1, tzinfo=UTC)))


class Make:
    """Builders with defaults that make a healthy deployment of one pod."""

    def resource(self, status: Object | None = None, **spec: Any) -> Object:
        resource = copy.deepcopy(RESOURCE)
        resource["spec"].update(spec)
        if status is not None:
            resource["status"] = status
        return resource

    def pod(self, name: str = "p1", **changed: Any) -> Pod:
        values: Object = {
            "name": name,
            "uid": f"uid-{name}",
            "ip": "10.0.0.1",
            "ready": True,
            "running": True,
            "template_hash": "h",
            "scheduled": True,
        }
        return Pod(**{**values, **changed})

    def state(self, **changed: Any) -> RuntimeState:
        values: Object = {
            "read_at": 100.0,
            "ready": True,
            "policy": Policy("Auto", 64),
            "generation_accepted": 1,
            "generation_applied": 1,
            "gears": (GearState("tp2", 1, 2, 60, 1000, 400.0), GearState("sp2", 2, 1, 40, 9000, 1000.0, 0.02)),
            "base_gear": "sp2",
            "threshold_tokens": 64,
            "threshold_source": "Policy",
            "crossover_reason": "NoCrossover",
            "self_check": SelfCheck(True, "agreed"),
            "load": Load(max_running_requests=16, kv_blocks_total=100, kv_blocks_free=75),
        }
        return RuntimeState(**{**values, **changed})

    def snapshot(
        self,
        resource: Object | None = None,
        pods: tuple[Pod, ...] = (),
        states: dict[str, RuntimeState] | None = None,
        children: dict[tuple[str, str], Object] | None = None,
    ) -> Snapshot:
        return Snapshot(resource or self.resource(), children or {}, pods, states or {})


@pytest.fixture
def make() -> Make:
    return Make()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def controller(recorder: Recorder) -> AsyncIterator[Controller]:
    controller = Controller(recorder, Metrics(), resync_seconds=60, poll_seconds=60)
    yield controller
    await controller.stop()
