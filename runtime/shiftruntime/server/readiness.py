"""Moves the pod through its stages and keeps grpc.health.v1 in step with them."""

from __future__ import annotations

import logging
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from shiftprotos.kserve import open_inference_pb2
from shiftprotos.v1 import inference_pb2

from shiftruntime.engine.client import EngineFailed
from shiftruntime.server.lifecycle import Lifecycle

log = logging.getLogger(__name__)

INFERENCE_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
KSERVE_SERVICE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_SERVICES = ("", INFERENCE_SERVICE, KSERVE_SERVICE)


class HealthService(health.aio.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 with List, which the library leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, int] = {}

    async def set(self, service: str, status: int) -> None:
        self._known[service] = status
        await super().set(service, status)

    async def List(  # noqa: N802
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        statuses = {service: health_pb2.HealthCheckResponse(status=status) for service, status in self._known.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


class Readiness:
    """The only writer of the lifecycle after start-up, so that health never says something else."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.health = HealthService()

    async def publish(self) -> None:
        """Set every service's health from the stage."""
        status = health_pb2.HealthCheckResponse
        serving = status.SERVING if self._lifecycle.ready else status.NOT_SERVING
        for service in _SERVICES:
            await self.health.set(service, serving)

    async def become_ready(self) -> None:
        self._lifecycle.become_ready()
        await self.publish()

    async def drain(self) -> None:
        """Idempotent."""
        if self._lifecycle.ready:
            log.info("draining: no new requests are taken")
        self._lifecycle.drain()
        await self.publish()

    async def fail(self, failure: EngineFailed) -> None:
        self._lifecycle.fail(failure)
        await self.publish()
