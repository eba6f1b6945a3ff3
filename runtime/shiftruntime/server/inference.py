"""shiftparallel.v1.Inference: one Generate call from arrival to its single end."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
from shiftprotos import contract
from shiftprotos.v1 import inference_pb2 as pb
from shiftprotos.v1 import inference_pb2_grpc

from shiftruntime.engine.client import EngineFailed, RequestRefused
from shiftruntime.engine.messages import Finish, Output, Submit
from shiftruntime.server.flights import Flight
from shiftruntime.server.frontend import FrontEnd, Model
from shiftruntime.server.refusal import ENGINE_SILENT, Refusal
from shiftruntime.server.text import Completion
from shiftruntime.server.validation import check_prompt, check_request, resolve_sampling
from shiftruntime.server.wire import FINISH_REASONS, load_to_wire

log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

# The engine admits or refuses between two steps.
ADMISSION_SECONDS = 30.0
# Shorter texts are tokenised in the event loop: a thread costs more than they do.
INLINE_CHARACTERS = 2048

_OUTCOMES = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.NOT_FOUND: "invalid",
    grpc.StatusCode.ALREADY_EXISTS: "invalid",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "rejected",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
}
_FINISH_OUTCOMES = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.ABORT: "abort"}


class InferenceService(inference_pb2_grpc.InferenceServicer):
    def __init__(self, frontend: FrontEnd) -> None:
        self._frontend = frontend

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        outcome = "error"
        try:
            with self._flight(request) as flight:
                model = self._frontend.serving()
                submit = await self._prepare(request, flight.request_id, model)
                completion = Completion(model.text.decoder(), request.sampling.stop, submit.sampling.stop_token_ids)
                outputs = await self._admit(submit, flight)
                try:
                    await context.send_initial_metadata(())
                    outcome = _FINISH_OUTCOMES[await self._stream(outputs, flight, submit, completion, context)]
                finally:
                    await _close(outputs)
        except Refusal as refusal:
            outcome = _OUTCOMES.get(refusal.code, "error")
            await refusal.end(context)
        except asyncio.CancelledError:  # the client left, or its deadline passed
            outcome = "cancelled"
            raise
        finally:
            self._frontend.metrics.ended(outcome)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:  # noqa: N802
        flight = self._frontend.flights.get(request.request_id)
        if flight is not None and flight.submitted:
            self._frontend.engine.abort(request.request_id)
        elif flight is not None:  # the engine does not know it yet
            flight.interruption = Refusal(
                grpc.StatusCode.CANCELLED, contract.REFUSED_ABORTED, "the request was aborted"
            )
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

    @contextmanager
    def _flight(self, request: pb.GenerateRequest) -> Iterator[Flight]:
        """The request's place among those in flight; however the call ends, the engine forgets it."""
        with self._frontend.flights.enter(request.request_id or uuid4().hex) as flight:
            try:
                yield flight
            finally:
                if flight.submitted and not flight.finished:
                    self._frontend.engine.abort(flight.request_id)

    async def _prepare(self, request: pb.GenerateRequest, request_id: str, model: Model) -> Submit:
        """The complete request; raises Refusal (INVALID_ARGUMENT, NOT_FOUND)."""
        check_request(request, model.limits)
        if request.WhichOneof("prompt") == "tokens":
            tokens = list(request.tokens.ids)
        elif len(request.text) <= INLINE_CHARACTERS:
            tokens = model.text.encode(request.text)
        else:
            tokens = await asyncio.to_thread(model.text.encode, request.text)
        check_prompt(tokens, model.limits)
        sampling = resolve_sampling(request.sampling, len(tokens), model.limits, secrets.randbits(63))
        return Submit(request_id, tuple(tokens), sampling)

    async def _admit(self, submit: Submit, flight: Flight) -> AsyncIterator[Output]:
        """Hand the request to the engine; raises Refusal when it is not accepted."""
        if flight.interruption is not None:  # the drain ended while the prompt was tokenised
            raise flight.interruption
        flight.submitted = True
        try:
            return await asyncio.wait_for(self._frontend.engine.submit(submit), ADMISSION_SECONDS)
        except RequestRefused as refused:
            flight.finished = True  # nothing to abort: the id may belong to another request
            raise Refusal.of(refused) from refused
        except EngineFailed as failure:
            flight.finished = True
            raise Refusal.of(failure) from failure
        except TimeoutError as error:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, ENGINE_SILENT, f"not admitted within {ADMISSION_SECONDS:g} s"
            ) from error

    async def _stream(
        self,
        outputs: AsyncIterator[Output],
        flight: Flight,
        submit: Submit,
        completion: Completion,
        context: Context,
    ) -> Finish:
        """Write the deltas of an accepted request up to the last one; raises Refusal when the pod ends it."""
        first_token: float | None = None
        try:
            async for output in outputs:
                flight.finished = output.finish is not None
                if flight.interruption is not None:
                    raise flight.interruption
                response, finish = _delta(output, completion, submit)
                if first_token is None and output.token_ids:
                    first_token = monotonic()
                    self._frontend.metrics.first_token(first_token - flight.arrived)
                if finish is not None:
                    if not flight.finished:  # a stop string ended it; the engine does not know yet
                        self._frontend.engine.abort(flight.request_id)
                        flight.finished = True
                    if first_token is not None:
                        self._frontend.metrics.decoded(completion.tokens - 1, monotonic() - first_token)
                await context.write(response)
                if finish is not None:
                    return finish
        except EngineFailed as failure:
            flight.finished = True
            raise Refusal.of(failure) from failure
        raise Refusal(grpc.StatusCode.INTERNAL, "InternalError", "the engine ended the request without a reason")


async def _close(outputs: AsyncIterator[Output]) -> None:
    """End the engine's generator now and not when it is collected: its id is free for the next request then."""
    if isinstance(outputs, AsyncGenerator):
        await outputs.aclose()


def _delta(output: Output, completion: Completion, submit: Submit) -> tuple[pb.GenerateResponse, Finish | None]:
    """The message for one output, and the finish reason when it is the last message."""
    text, used = completion.push(output.token_ids)
    finish = output.finish
    if finish is not None:
        text += completion.finish()
    if completion.stopped:
        finish = Finish.STOP
    response = pb.GenerateResponse(
        request_id=submit.request_id,
        text=text,
        token_ids=output.token_ids[:used],
        logprobs=output.logprobs[:used],
    )
    if finish is not None:
        response.finish_reason = FINISH_REASONS[finish]
        response.usage.prompt_tokens = len(submit.prompt)
        response.usage.completion_tokens = completion.tokens
    return response, finish
