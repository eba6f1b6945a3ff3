"""Moves the pod through its stages and keeps grpc.health.v1 in step with them."""

from __future__ import annotations

import logging

from grpc_health.v1 import health, health_pb2

from shiftruntime.engine.client import EngineFailed
from shiftruntime.server.lifecycle import Lifecycle

log = logging.getLogger(__name__)

INFERENCE_SERVICE = "shiftparallel.v1.Inference"
_SERVICES = ("", INFERENCE_SERVICE)


class Readiness:
    """The only writer of the lifecycle after start-up, so that health never says something else."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.health = health.aio.HealthServicer()

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
