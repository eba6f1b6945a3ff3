"""Open Inference Protocol v2 with Triton's ModelStreamInfer: text in, text out, over server/generation.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeAlias

import grpc
from shiftprotos.kserve import open_inference_pb2 as pb
from shiftprotos.kserve import open_inference_pb2_grpc

from shiftruntime.engine.messages import Finish
from shiftruntime.server.deadlines import Deadlines, deliver
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.generation import Delta, Generation, generate
from shiftruntime.server.generation_wire import trailers
from shiftruntime.server.kserve_parameters import (
    EXCLUDE_INPUT,
    JSON_PARAMETERS,
    STREAM,
    TEXT_INPUT,
    TOKEN_INPUT,
    read_request,
)
from shiftruntime.server.kserve_stream import Answers
from shiftruntime.server.kserve_tensors import Tensor, invalid, write_outputs
from shiftruntime.server.refusal import Refusal, quoted
from shiftruntime.server.request_metadata import trace_metadata, trace_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

MODEL_VERSION = "1"
EXTENSIONS = ("model_stream_infer",)
# Requests of one stream that are read ahead of their answers; the client's writes wait beyond that.
MAX_OPEN_PER_STREAM = 256

_INPUTS = (
    (TEXT_INPUT, "BYTES", 1), (TOKEN_INPUT, "INT64", -1), (STREAM, "BOOL", 1), (EXCLUDE_INPUT, "BOOL", 1),
    (JSON_PARAMETERS, "BYTES", 1),
)  # fmt: skip
_OUTPUTS = {
    "text_output": "BYTES", "finish_reason": "BYTES", "choice_index": "INT32", "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}  # fmt: skip
_FINISH_WORDS = {Finish.STOP: b"stop", Finish.LENGTH: b"length", Finish.ABORT: b"abort"}


class KServeService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, frontend: FrontEnd) -> None:
        self._frontend = frontend

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._frontend.lifecycle.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802
        known = request.name == self._frontend.options.served_name and request.version in ("", MODEL_VERSION)
        return pb.ModelReadyResponse(ready=known and self._frontend.lifecycle.ready)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="shift-runtime", version=self._frontend.version, extensions=EXTENSIONS)

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        try:
            self._check_model(request.name, request.version)
        except Refusal as refusal:
            await refusal.end(context)
        metadata = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[MODEL_VERSION],
            platform="shift",
            inputs=[metadata(name=name, datatype=datatype, shape=[size]) for name, datatype, size in _INPUTS],
            outputs=[metadata(name=name, datatype=datatype, shape=[-1]) for name, datatype in _OUTPUTS.items()],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        trace = trace_of(context)

        async def accepted() -> None:
            await context.send_initial_metadata(trace_metadata(trace))

        try:
            self._check_request(request)
            asked, streams = read_request(request, context.time_remaining(), trace)
            if streams:
                raise invalid(f"input {STREAM!r} is true; use ModelStreamInfer for streams")
            async with aclosing(generate(self._frontend, asked, accepted)) as generated:
                deltas = [delta async for delta in generated]
        except Refusal as refusal:
            await refusal.end(context)
        context.set_trailing_metadata(trailers([delta for delta in deltas if delta.finish is not None]))
        return _whole_response(request, asked.options.n, deltas)

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        """An error ends its request, not the stream; the client's leaving, or reading nothing, ends all of them."""
        trace, answers, ended = trace_of(context), Answers(context), _Ended()
        places = asyncio.Semaphore(MAX_OPEN_PER_STREAM)
        await context.send_initial_metadata(trace_metadata(trace))

        async def answer(request: pb.ModelInferRequest) -> None:
            try:
                self._check_request(request)
                asked, streams = read_request(request, context.time_remaining(), trace)
                await self._answer(request, asked, streams, answers, ended)
            except Refusal as refusal:
                text = f"{refusal.reason}: {refusal.message}"
                response = _response(request, True)
                await answers.put(pb.ModelStreamInferResponse(error_message=text, infer_response=response))
            finally:
                places.release()

        try:
            async with answers.written(), asyncio.TaskGroup() as group:
                async for request in requests:
                    await places.acquire()
                    group.create_task(answer(request))
        except Refusal as refusal:
            await refusal.end(context)
        context.set_trailing_metadata(trailers(ended.last))

    async def _answer(
        self, request: pb.ModelInferRequest, asked: Generation, streams: bool, answers: Answers, ended: _Ended
    ) -> None:
        """One response, or one per delta; raises Refusal."""
        deadlines = Deadlines.of(asked, self._frontend.options.limits, monotonic())
        whole: list[Delta] = []
        last: list[Delta] = []

        async def write(delta: Delta) -> None:
            if delta.finish is not None:
                last.append(delta)
            if not streams:
                whole.append(delta)
            elif delta.text or delta.finish is not None:
                await put(_delta_response(request, delta, final=len(last) == asked.options.n, ended=last))

        async def put(response: pb.ModelInferResponse) -> None:
            await answers.put(pb.ModelStreamInferResponse(infer_response=response))

        async with aclosing(generate(self._frontend, asked)) as deltas:
            await deliver(deltas, deadlines, write)
        ended.last = last
        if not streams:
            await put(_whole_response(request, asked.options.n, whole))

    def _check_request(self, request: pb.ModelInferRequest) -> None:
        self._frontend.serving()
        self._check_model(request.model_name, request.model_version)
        for output in request.outputs:
            if output.name not in _OUTPUTS:
                raise invalid(f"output {quoted(output.name)} is unknown; known are {', '.join(_OUTPUTS)}")

    def _check_model(self, name: str, version: str) -> None:
        """The protocol wants a name, unlike ours."""
        served = self._frontend.options.served_name
        if name != served or version not in ("", MODEL_VERSION):
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "ModelNotFound",
                f"model {quoted(name)} version {quoted(version)} is not served here; "
                f"this pod serves {served!r} version {MODEL_VERSION!r}",
            )


@dataclass
class _Ended:
    """What the trailers of a stream tell of: the request that ended last."""

    last: list[Delta] = field(default_factory=list)


def _whole_response(request: pb.ModelInferRequest, n: int, deltas: list[Delta]) -> pb.ModelInferResponse:
    """All choices, in order."""
    texts = [""] * n
    last: dict[int, Delta] = {}
    for delta in deltas:
        texts[delta.index] += delta.text
        if delta.finish is not None:
            last[delta.index] = delta
    response = _response(request, True)
    ended = [last[index] for index in range(n)]
    _fill(request, response, texts, ended)
    _tell_journey(response, ended)
    return response


def _delta_response(
    request: pb.ModelInferRequest, delta: Delta, final: bool, ended: list[Delta]
) -> pb.ModelInferResponse:
    """``ended``: the last delta of each choice that has ended."""
    response = _response(request, final)
    if final:
        _tell_journey(response, ended)
    _fill(request, response, [delta.text], [delta])
    return response


def _fill(
    request: pb.ModelInferRequest, response: pb.ModelInferResponse, texts: list[str], deltas: list[Delta]
) -> None:
    """One element per choice; token counts where they are known."""
    usages = [delta.usage for delta in deltas if delta.usage is not None]
    values: dict[str, tuple[Any, ...]] = {
        "text_output": tuple(text.encode() for text in texts),
        "finish_reason": tuple(_FINISH_WORDS[d.finish] if d.finish is not None else b"" for d in deltas),
        "choice_index": tuple(delta.index for delta in deltas),
        "num_input_tokens": tuple(usage.prompt_tokens for usage in usages),
        "num_output_tokens": tuple(usage.completion_tokens for usage in usages),
    }
    wanted = [output.name for output in request.outputs] or list(_OUTPUTS)
    write_outputs([Tensor(name, _OUTPUTS[name], values[name]) for name in wanted], response)


def _tell_journey(response: pb.ModelInferResponse, ended: list[Delta]) -> None:
    """What a call's trailers say, in the last response of each request: the requests of a stream share its trailers."""
    for name, value in trailers(ended):
        response.parameters[name].string_param = value


def _response(request: pb.ModelInferRequest, final: bool) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=MODEL_VERSION, id=request.id)
    response.parameters["triton_final_response"].bool_param = final
    return response
