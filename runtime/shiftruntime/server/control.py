"""shiftparallel.v1.Control: what the operator asks of a pod. It answers from the first moment of start-up on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeAlias

import grpc
from shiftprotos.v1 import control_pb2 as pb
from shiftprotos.v1 import control_pb2_grpc

from shiftruntime.engine.client import EngineFailed, PolicyRefused
from shiftruntime.engine.messages import EngineState
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.lifecycle import Stage
from shiftruntime.server.readiness import Readiness
from shiftruntime.server.refusal import ENGINE_SILENT, Refusal
from shiftruntime.server.wire import (
    crossover_to_wire,
    fill_state,
    gears_to_wire,
    phases_to_wire,
    policy_from_wire,
    policy_to_wire,
)

log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

POLICY_SECONDS = 10.0


class ControlService(control_pb2_grpc.ControlServicer):
    def __init__(self, frontend: FrontEnd, readiness: Readiness) -> None:
        self._frontend = frontend
        self._readiness = readiness

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> pb.GetStateResponse:  # noqa: N802
        frontend = self._frontend
        lifecycle, options = frontend.lifecycle, frontend.options.engine
        response = pb.GetStateResponse(
            ready=lifecycle.ready,
            draining=lifecycle.stage is Stage.DRAINING,
            phases=phases_to_wire(lifecycle.phases.values()),
            version=frontend.version,
            ranks=options.ranks,
            base_gear=options.base_gear.name,
            dtype=options.dtype,
            policy=policy_to_wire(options.policy),
        )
        try:
            if lifecycle.stage is Stage.STARTING or lifecycle.failure is not None:
                return response
            response.dtype = frontend.model.ready.dtype
            fill_state(response, await frontend.state())
        except Refusal as refusal:
            await refusal.end(context)
        return response

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.SetPolicyResponse:  # noqa: N802
        try:
            _ = self._frontend.model  # refuses while the pod starts
            policy = policy_from_wire(request.policy)
            if not request.HasField("policy"):
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "InvalidPolicy", "the request has no policy")
            state = await self._ask(self._frontend.engine.set_policy(policy), POLICY_SECONDS)
        except Refusal as refusal:
            log.warning("policy refused: %s", refusal.message, extra={"fields": {"reason": refusal.reason}})
            await refusal.end(context)
        fields = {"mode": str(policy.mode), "gear": policy.gear, "threshold": policy.threshold_tokens}
        log.info(
            "policy %s accepted, generation %d", policy.gear or policy.mode, policy.generation, extra={"fields": fields}
        )
        return pb.SetPolicyResponse(
            generation_accepted=state.policy.generation, generation_applied=state.generation_applied
        )

    async def Calibrate(self, request: pb.CalibrateRequest, context: Context) -> pb.CalibrateResponse:  # noqa: N802
        try:
            _ = self._frontend.serving()
            state = await self._ask(self._frontend.engine.calibrate())
        except Refusal as refusal:
            await refusal.end(context)
        return pb.CalibrateResponse(gears=gears_to_wire(state), crossover=crossover_to_wire(state))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:  # noqa: N802
        try:
            _ = self._frontend.model  # refuses while the pod starts
            await self._readiness.drain()
            state = await self._ask(self._frontend.engine.drain(), POLICY_SECONDS)
        except Refusal as refusal:
            await refusal.end(context)
        return pb.DrainResponse(
            running_requests=state.load.running_requests, waiting_requests=state.load.waiting_requests
        )

    async def _ask(self, call: Coroutine[Any, Any, EngineState], seconds: float | None = None) -> EngineState:
        """The engine's answer; raises Refusal. Without ``seconds`` the call has its own deadline."""
        try:
            return await asyncio.wait_for(call, seconds)
        except (EngineFailed, PolicyRefused) as error:
            raise Refusal.of(error) from error
        except TimeoutError as error:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, ENGINE_SILENT, f"the engine did not answer within {seconds:g} s"
            ) from error
