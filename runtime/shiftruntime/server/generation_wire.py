"""Between a generation and shiftparallel.v1: pure conversions, no checks."""

from __future__ import annotations

from shiftprotos.v1 import inference_pb2 as pb

from shiftruntime.engine.messages import Finish
from shiftruntime.server.request import Delta, Generation, Options

FINISH_REASONS = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.ABORT: pb.FINISH_REASON_ABORT,
}


def generation_from_wire(request: pb.GenerateRequest) -> Generation:
    prompt: str | tuple[int, ...] | None = None
    match request.WhichOneof("prompt"):
        case "text":
            prompt = request.text
        case "tokens":
            prompt = tuple(request.tokens.ids)
    return Generation(prompt, _options(request.sampling), request_id=request.request_id, model=request.model)


def _options(params: pb.SamplingParams) -> Options:
    return Options(
        temperature=params.temperature if params.HasField("temperature") else None,
        top_p=params.top_p if params.HasField("top_p") else None,
        seed=params.seed if params.HasField("seed") else None,
        max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


def response_to_wire(delta: Delta) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        request_id=delta.request_id, text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs
    )
    if delta.finish is not None:
        response.finish_reason = FINISH_REASONS[delta.finish]
    if delta.usage is not None:
        response.usage.prompt_tokens = delta.usage.prompt_tokens
        response.usage.completion_tokens = delta.usage.completion_tokens
    return response
