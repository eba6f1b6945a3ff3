"""shiftparallel.v1.Inference over gRPC: messages in and out; the generation itself is server/generation.py."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from shiftprotos.v1 import inference_pb2 as pb
from shiftprotos.v1 import inference_pb2_grpc

from shiftruntime.server import generation
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.generation_wire import generation_from_wire, response_to_wire
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.wire import load_to_wire

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class InferenceService(inference_pb2_grpc.InferenceServicer):
    def __init__(self, frontend: FrontEnd) -> None:
        self._frontend = frontend

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        async def accepted() -> None:
            await context.send_initial_metadata(())

        asked = generation_from_wire(request)
        try:
            async with aclosing(generation.generate(self._frontend, asked, accepted)) as deltas:
                async for delta in deltas:
                    await context.write(response_to_wire(delta))
        except Refusal as refusal:
            await refusal.end(context)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:  # noqa: N802
        generation.abort(self._frontend, request.request_id)
        return pb.AbortResponse()

    async def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        try:
            ready = self._frontend.model.ready
        except Refusal as refusal:
            await refusal.end(context)
        return pb.GetModelInfoResponse(
            served_name=self._frontend.options.served_name,
            architecture=ready.architecture,
            max_model_len=ready.max_model_len,
            vocab_size=ready.vocab_size,
            dtype=ready.dtype,
            ranks=self._frontend.options.engine.ranks,
            gears=ready.gears,
        )

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:  # noqa: N802
        try:
            _ = self._frontend.model  # refuses while the pod starts
            state = await self._frontend.state()
        except Refusal as refusal:
            await refusal.end(context)
        return pb.GetLoadsResponse(load=load_to_wire(state.load))
