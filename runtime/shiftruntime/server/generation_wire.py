"""Between a generation and shiftparallel.v1: pure conversions, no checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from shiftprotos import contract
from shiftprotos.v1 import inference_pb2 as pb

from shiftruntime.engine.messages import Finish, Grammar
from shiftruntime.models.generation_config import GenerationDefaults
from shiftruntime.server.request import Delta, Generation, Journey, Options
from shiftruntime.server.tokens import slices
from shiftruntime.server.trace_context import TraceContext

FINISH_REASONS = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.ABORT: pb.FINISH_REASON_ABORT,
}
_OPTIONAL = (
    "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "repetition_penalty",
    "presence_penalty", "frequency_penalty",
)  # fmt: skip


def generation_from_wire(
    request: pb.GenerateRequest, deadline_seconds: float | None = None, trace: TraceContext | None = None
) -> Generation:
    """``deadline_seconds``: what is left of the call's own deadline."""
    prompt: str | tuple[int, ...] | None = None
    match request.WhichOneof("prompt"):
        case "text":
            prompt = request.text
        case "tokens":
            prompt = tuple(request.tokens.ids)
    return Generation(
        prompt,
        _options(request.sampling),
        request_id=request.request_id,
        model=request.model,
        tenant=request.tenant,
        priority=request.priority,
        timeout_seconds=request.timeout_seconds if request.HasField("timeout_seconds") else None,
        deadline_seconds=deadline_seconds,
        echo=request.echo,
        add_special_tokens=not request.HasField("add_special_tokens") or request.add_special_tokens,
        trace=trace,
    )


def _options(params: pb.SamplingParams) -> Options:
    return Options(
        **{name: getattr(params, name) for name in _OPTIONAL if params.HasField(name)},
        n=params.n if params.HasField("n") else 1,
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
        top_logprobs=params.top_logprobs,
        prompt_logprobs=params.prompt_logprobs,
        logit_bias=dict(params.logit_bias),
        grammar=_grammar(params),
    )


def _grammar(params: pb.SamplingParams) -> Grammar | None:
    match params.WhichOneof("response_format"):
        case "json_schema":
            return Grammar("json_schema", params.json_schema)
        case "json_object":
            return Grammar("json_object", "")
        case "regex":
            return Grammar("regex", params.regex)
    return None


def response_to_wire(delta: Delta) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        request_id=delta.request_id,
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        top_logprobs=[pb.TopLogprobs(token_ids=top.token_ids, logprobs=top.logprobs) for top in delta.top_logprobs],
        prompt_token_ids=delta.prompt_token_ids,
        prompt_logprobs=delta.prompt_logprobs,
    )
    if delta.finish is not None:
        response.finish_reason = FINISH_REASONS[delta.finish]
    if delta.usage is not None:
        response.usage.prompt_tokens = delta.usage.prompt_tokens
        response.usage.completion_tokens = delta.usage.completion_tokens
        response.usage.cached_tokens = delta.usage.cached_tokens
    if delta.journey is not None:
        response.journey.CopyFrom(_journey(delta.journey))
    return response


def _journey(journey: Journey) -> pb.Journey:
    return pb.Journey(
        queue_seconds=journey.queue_seconds, ttft_seconds=journey.ttft_seconds, gear_tokens=journey.gear_tokens
    )


def trailers(last_deltas: Iterable[Delta]) -> tuple[tuple[str, str], ...]:
    """Trailing metadata of a call, from the last delta of each choice.

    Gears are those of all choices; queue and cached tokens are of choice 0, which computes the prompt for the others.
    """
    deltas = sorted(last_deltas, key=lambda delta: delta.index)
    journeys = [delta.journey for delta in deltas if delta.journey is not None]
    if not journeys:
        return ()
    entries = [(contract.METADATA_QUEUE_MS, _ms(journeys[0].queue_seconds))]
    gear_tokens: Counter[str] = Counter()
    for journey in journeys:
        gear_tokens.update(journey.gear_tokens)
    if total := gear_tokens.total():
        shares = ",".join(f"{gear}={tokens / total:.4g}" for gear, tokens in sorted(gear_tokens.items()))
        entries.append((contract.METADATA_GEAR_SHARE, shares))
    first_tokens = [journey.ttft_seconds for journey in journeys if journey.ttft_seconds is not None]
    if first_tokens:
        entries.append((contract.METADATA_TTFT_MS, _ms(min(first_tokens))))
    if deltas[0].usage is not None:
        entries.append((contract.METADATA_CACHED_TOKENS, str(deltas[0].usage.cached_tokens)))
    return tuple(entries)


def defaults_to_wire(defaults: GenerationDefaults) -> pb.SamplingParams:
    """What unset values mean, the server's own defaults filled in."""

    def known(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    return pb.SamplingParams(
        temperature=known(defaults.temperature, 1.0),
        top_p=known(defaults.top_p, 1.0),
        top_k=defaults.top_k or 0,
        min_p=known(defaults.min_p, 0.0),
        repetition_penalty=known(defaults.repetition_penalty, 1.0),
        presence_penalty=0.0,
        frequency_penalty=0.0,
        max_tokens=defaults.max_new_tokens,
        min_tokens=0,
        n=1,
        stop=defaults.stop_strings,
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def tokenized_to_wire(ids: Sequence[int], bytes_of: Callable[[int], bytes]) -> pb.TokenizeResponse:
    response = pb.TokenizeResponse()
    for _, some in slices(ids):
        response.token_ids.extend(some)
        response.pieces.extend(map(bytes_of, some))
    return response
