"""What a Generate request may ask for. Pure: values and limits in, complete sampling or a Refusal out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from shiftprotos.v1 import inference_pb2 as pb

from shiftruntime.engine.messages import Sampling
from shiftruntime.server.refusal import Refusal

MAX_TEMPERATURE = 100.0
# Dividing logits by less overflows float32; the text is the greedy one long before.
GREEDY_BELOW_TEMPERATURE = 1e-4
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_REQUEST_ID_CHARACTERS = 128
# The engine counts seeds in 63 bits.
_SEED_MASK = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """What this pod can serve."""

    served_name: str
    vocab_size: int
    max_prompt_tokens: int
    max_model_len: int
    eos_ids: tuple[int, ...]


def check_request(request: pb.GenerateRequest, limits: Limits) -> None:
    """Everything that can be said before the prompt is tokenised; raises Refusal."""
    if request.model not in ("", limits.served_name):
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "ModelNotFound",
            f"model {_quoted(request.model)} is not served here; this pod serves {limits.served_name!r}",
        )
    _check_request_id(request.request_id)
    _check_sampling(request.sampling)
    _check_stops(request.sampling, limits)
    if request.WhichOneof("prompt") is None:
        raise _invalid("PromptEmpty", "the request has no prompt; set text or tokens")


def check_prompt(tokens: Sequence[int], limits: Limits) -> None:
    """A tokenised prompt; raises Refusal."""
    if not tokens:
        raise _invalid("PromptEmpty", "the prompt has 0 tokens; at least 1 is needed")
    if len(tokens) > limits.max_prompt_tokens:
        raise _invalid(
            "PromptTooLong",
            f"the prompt has {len(tokens)} tokens; this model takes at most {limits.max_prompt_tokens}",
        )
    _check_token_ids("prompt token id", tokens, limits)


def resolve_sampling(params: pb.SamplingParams, prompt_tokens: int, limits: Limits, drawn_seed: int) -> Sampling:
    """Checked parameters with every default filled in."""
    temperature = params.temperature if params.HasField("temperature") else 1.0
    room = limits.max_model_len - prompt_tokens
    wanted = params.max_tokens if params.HasField("max_tokens") else room
    ends = () if params.ignore_eos else limits.eos_ids
    return Sampling(
        temperature=temperature if temperature >= GREEDY_BELOW_TEMPERATURE else 0.0,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        seed=(params.seed if params.HasField("seed") else drawn_seed) & _SEED_MASK,
        max_tokens=max(1, min(wanted, room)),
        stop_token_ids=tuple(sorted({*params.stop_token_ids, *ends})),
        logprobs=params.logprobs,
    )


def _check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS:
        raise _invalid(
            "RequestIdInvalid",
            f"request_id has {len(request_id)} characters; at most {MAX_REQUEST_ID_CHARACTERS} are allowed",
        )
    if not request_id.isprintable():
        raise _invalid("RequestIdInvalid", f"request_id {request_id!r} has characters that cannot be printed")


def _check_sampling(params: pb.SamplingParams) -> None:
    if params.HasField("temperature") and not 0.0 <= params.temperature <= MAX_TEMPERATURE:  # NaN compares false
        raise _invalid(
            "TemperatureInvalid", f"temperature {params.temperature} is outside 0..{MAX_TEMPERATURE:g} (0 is greedy)"
        )
    if params.HasField("top_p") and (math.isnan(params.top_p) or not 0.0 < params.top_p <= 1.0):
        raise _invalid("TopPInvalid", f"top_p {params.top_p} is outside (0, 1]")
    if params.HasField("max_tokens") and params.max_tokens == 0:
        raise _invalid("MaxTokensInvalid", "max_tokens 0 is below 1; leave it unset for the model's length")


def _check_stops(params: pb.SamplingParams, limits: Limits) -> None:
    if len(params.stop) > MAX_STOP_STRINGS:
        raise _invalid("StopInvalid", f"{len(params.stop)} stop strings; at most {MAX_STOP_STRINGS} are allowed")
    for stop in params.stop:
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise _invalid(
                "StopInvalid",
                f"stop string {_quoted(stop)} has {len(stop)} characters; 1 to {MAX_STOP_CHARACTERS} are allowed",
            )
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise _invalid(
            "StopInvalid", f"{len(params.stop_token_ids)} stop token ids; at most {MAX_STOP_TOKEN_IDS} are allowed"
        )
    _check_token_ids("stop token id", params.stop_token_ids, limits)


def _check_token_ids(what: str, ids: Sequence[int], limits: Limits) -> None:
    largest = max(ids, default=0)  # unsigned on the wire
    if largest >= limits.vocab_size:
        raise _invalid(
            "UnknownTokenId",
            f"{what} {largest} at position {list(ids).index(largest)} is unknown; "
            f"this model's ids are 0..{limits.vocab_size - 1}",
        )


def _invalid(reason: str, message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason, message)


def _quoted(text: str, shown: int = 64) -> str:
    """A client's text in a status message, cut: status messages travel in HTTP headers."""
    return repr(text if len(text) <= shown else text[:shown] + "…")
