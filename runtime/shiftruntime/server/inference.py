"""shiftparallel.v1.Inference over gRPC: messages in and out; the generation itself is server/generation.py."""

from __future__ import annotations

from contextlib import aclosing
from time import monotonic
from typing import Any, TypeAlias

import grpc
from shiftprotos.v1 import inference_pb2 as pb
from shiftprotos.v1 import inference_pb2_grpc

from shiftruntime.server import generation, tokens
from shiftruntime.server.deadlines import Deadlines, deliver
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.generation_wire import (
    defaults_to_wire,
    generation_from_wire,
    response_to_wire,
    tokenized_to_wire,
    trailers,
)
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request_metadata import trace_metadata, trace_of
from shiftruntime.server.unsupported import UNSUPPORTED
from shiftruntime.server.validation import check_model
from shiftruntime.server.wire import load_to_wire

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class InferenceService(inference_pb2_grpc.InferenceServicer):
    def __init__(self, frontend: FrontEnd) -> None:
        self._frontend = frontend

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        trace = trace_of(context)

        async def accepted() -> None:
            await context.send_initial_metadata(trace_metadata(trace))

        async def write(delta: generation.Delta) -> None:
            await context.write(response_to_wire(delta))
            if delta.finish is not None:
                ended.append(delta)

        asked = generation_from_wire(request, context.time_remaining(), trace)
        deadlines = Deadlines.of(asked, self._frontend.options.limits, monotonic())
        ended: list[generation.Delta] = []
        try:
            async with aclosing(generation.generate(self._frontend, asked, accepted)) as deltas:
                await deliver(deltas, deadlines, write)
        except Refusal as refusal:
            await refusal.end(context)
        context.set_trailing_metadata(trailers(ended))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:  # noqa: N802
        generation.abort(self._frontend, request.request_id)
        return pb.AbortResponse()

    async def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        try:
            model = self._frontend.model
        except Refusal as refusal:
            await refusal.end(context)
        ready, limits = model.ready, model.limits
        return pb.GetModelInfoResponse(
            served_name=self._frontend.options.served_name,
            architecture=ready.architecture,
            max_model_len=ready.max_model_len,
            vocab_size=ready.vocab_size,
            dtype=ready.dtype,
            ranks=self._frontend.options.engine.ranks,
            gears=ready.gears,
            max_prompt_tokens=ready.max_prompt_tokens,
            eos_token_ids=limits.eos_ids,
            default_sampling=defaults_to_wire(limits.defaults),
            unsupported_features=sorted(UNSUPPORTED),
        )

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:  # noqa: N802
        try:
            _ = self._frontend.model  # refuses while the pod starts
            state = await self._frontend.state()
        except Refusal as refusal:
            await refusal.end(context)
        return pb.GetLoadsResponse(load=load_to_wire(state.load))

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        try:
            model = self._frontend.model
            check_model(request.model, model.limits)
            special = not request.HasField("add_special_tokens") or request.add_special_tokens
            ids = await tokens.tokenise(model, request.text, special)
        except Refusal as refusal:
            await refusal.end(context)
        return await tokens.in_thread(model, len(ids), tokenized_to_wire, ids, model.text.token_bytes)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:  # noqa: N802
        try:
            model = self._frontend.model
            check_model(request.model, model.limits)
            text = await tokens.detokenise(model, request.token_ids)
        except Refusal as refusal:
            await refusal.end(context)
        return pb.DetokenizeResponse(text=text)
