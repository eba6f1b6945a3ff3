"""The ports of a pod: inference and control gRPC, OpenAI HTTP, ops HTTP. All are bound before the model is touched."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from shiftprotos import contract
from shiftprotos.kserve import open_inference_pb2_grpc
from shiftprotos.v1 import inference_pb2_grpc

from shiftruntime.server.control import ControlService
from shiftruntime.server.control_listener import bind, cannot_listen, control_server, control_tls
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.inference import InferenceService
from shiftruntime.server.kserve import KServeService
from shiftruntime.server.limits import inference_channel
from shiftruntime.server.openai.listener import openai_server
from shiftruntime.server.ops import OpsServer, routes
from shiftruntime.server.readiness import INFERENCE_SERVICE, KSERVE_SERVICE, Readiness
from shiftruntime.server.tls import TlsCredentials

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    inference: int
    control: int
    ops: int
    openai: int | None = None


class Listeners:
    """The servers of one pod."""

    def __init__(self, frontend: FrontEnd, readiness: Readiness) -> None:
        """Raises StartupError when the control token, the API keys or the TLS files cannot be read."""
        self._options = frontend.options
        self._tls = None if self._options.tls is None else TlsCredentials(self._options.tls).grpc()
        self._control_tls = control_tls(self._options.environment) or (self._tls if self._options.tls_control else None)
        self._inference = _inference_server(frontend, readiness)
        self._control, token = control_server(
            ControlService(frontend, readiness), self._options.environment, self._options.limits
        )
        self._authenticated = token is not None
        self._going: asyncio.Task[None] | None = None
        self._ops = OpsServer(routes(frontend.lifecycle, frontend.registry))
        self._openai = None if self._options.openai_port is None else openai_server(frontend)

    async def start(self) -> Ports:
        """Bind and listen; raises StartupError that names the port and the option."""
        options = self._options
        control_host = options.host if self._authenticated else LOOPBACK
        if not self._authenticated:
            log.warning(
                "no %s: the control port asks for no token and listens on %s only",
                contract.ENV_CONTROL_TOKEN_FILE,
                LOOPBACK,
            )
        try:
            ops = await self._ops.start(options.host, options.ops_port)
        except OSError as error:
            raise cannot_listen(options.host, options.ops_port, "--ops-port", str(error)) from error
        openai = await self._start_openai()
        inference = bind(self._inference, options.host, options.port, "--port", self._tls)
        control = bind(self._control, control_host, options.control_port, "--control-port", self._control_tls)
        await self._inference.start()
        await self._control.start()
        return Ports(inference, control, ops, openai)

    async def _start_openai(self) -> int | None:
        host, port = self._options.host, self._options.openai_port
        if self._openai is None or port is None:
            return None
        try:
            return await self._openai.start(host, port)
        except OSError as error:
            raise cannot_listen(host, port, "--openai-port", str(error)) from error

    def drain(self) -> None:
        """Connections over HTTP end with their answer; gRPC's end with ``go_away``."""
        if self._openai is not None:
            self._openai.drain()

    def go_away(self, grace_seconds: float) -> None:
        """Close the inference port and tell its connections to end (GOAWAY). Returns at once; open calls go on.

        Calls still open after ``grace_seconds`` are cut.
        """
        # Never cancelled: gRPC could not be stopped any more after that.
        self._going = asyncio.create_task(self._inference.stop(grace_seconds))

    async def stop(self, grace_seconds: float) -> None:
        """End every call still open after ``grace_seconds``, ops last: probes are answered to the end."""
        if self._openai is not None:
            await self._openai.stop()
        await self._inference.stop(grace_seconds)
        if self._going is not None:
            await self._going
        await self._control.stop(grace_seconds)
        await self._ops.stop()


def _inference_server(frontend: FrontEnd, readiness: Readiness) -> grpc.aio.Server:
    server = grpc.aio.server(options=inference_channel(frontend.options.limits))
    inference_pb2_grpc.add_InferenceServicer_to_server(InferenceService(frontend), server)  # type: ignore[no-untyped-call]
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(KServeService(frontend), server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(readiness.health, server)
    if frontend.options.reflection:
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection(
            (INFERENCE_SERVICE, KSERVE_SERVICE, health, reflection.SERVICE_NAME), server
        )
    return server
