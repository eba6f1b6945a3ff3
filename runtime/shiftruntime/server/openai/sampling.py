"""From a request's fields to the options of a generation. Pure; raises HttpError or Refusal that names the field."""

from __future__ import annotations

import json
import re

from shiftruntime.engine.messages import Grammar
from shiftruntime.server.openai.errors import invalid
from shiftruntime.server.openai.protocol import ChatRequest, CompletionRequest, Request, StructuredOutputs
from shiftruntime.server.request import Options
from shiftruntime.server.validation import check_choices

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for completions


def completion_options(request: CompletionRequest) -> Options:
    top = request.logprobs
    if top is not None and top < 0:
        raise invalid(f"logprobs {top} is below 0; give the number of alternatives, or leave it out", "logprobs")
    return _options(
        request,
        max_tokens=COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        logprobs=top is not None,
        top_logprobs=top or 0,
        prompt_logprobs=request.echo and top is not None,
        grammar=grammar(request),
    )


def chat_options(request: ChatRequest, forced: Grammar | None) -> Options:
    """``forced``: the grammar of a required call."""
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    asked = grammar(request)
    if forced is not None and asked is not None:
        raise invalid("a required tool call and response_format exclude each other; give one of them", "tool_choice")
    return _options(request, most, request.logprobs, request.top_logprobs, False, forced or asked)


def grammar(request: Request) -> Grammar | None:
    """What the text must look like, from response_format or structured_outputs."""
    wanted = [value for value in (request.response_format, request.structured_outputs) if value is not None]
    if len(wanted) == 2 and request.response_format is not None and request.response_format.type != "text":
        raise invalid("response_format and structured_outputs exclude each other; give one of them", "response_format")
    if request.structured_outputs is not None:
        return _structured(request.structured_outputs)
    if request.response_format is None or request.response_format.type == "text":
        return None
    if request.response_format.type == "json_object":
        return Grammar("json_object", "")
    schema = request.response_format.json_schema
    if schema is None or schema.schema is None:
        raise invalid("response_format of type json_schema needs json_schema.schema", "response_format")
    return Grammar("json_schema", json.dumps(schema.schema))


def _structured(wanted: StructuredOutputs) -> Grammar:
    given = [name for name in wanted.__struct_fields__ if getattr(wanted, name)]
    if len(given) != 1:
        raise invalid(f"structured_outputs has {len(given)} of json, json_object, regex, choice; one is needed",
                      "structured_outputs")  # fmt: skip
    if wanted.json_object:
        return Grammar("json_object", "")
    if wanted.regex:
        return Grammar("regex", wanted.regex)
    if wanted.choice:
        return Grammar("regex", "|".join(f"({re.escape(choice)})" for choice in wanted.choice))
    return Grammar("json_schema", wanted.json if isinstance(wanted.json, str) else json.dumps(wanted.json))


def _options(
    request: Request,
    max_tokens: int | None,
    logprobs: bool,
    top_logprobs: int,
    prompt_logprobs: bool,
    grammar: Grammar | None,
) -> Options:
    check_choices(request.n)  # before an answer with a place for each of them is made
    if request.best_of not in (None, request.n):
        raise invalid(
            f"best_of {request.best_of} is not supported; leave it out or set it to n", "best_of", "Unsupported"
        )
    stop = request.stop or ()
    return Options(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0 if request.top_k == -1 else request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        include_stop=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
        n=request.n,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias or {},
        grammar=grammar,
    )
