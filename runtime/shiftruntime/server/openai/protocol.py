"""Bodies of requests: OpenAI's fields, and vLLM's by its names."""

from __future__ import annotations

import logging
import re
from typing import Any, Literal, TypeVar

import msgspec

from shiftruntime.server.chat.messages import Message, Tool
from shiftruntime.server.openai.errors import invalid
from shiftruntime.server.openai.refused_fields import GUIDED, check_refused, fold_guided
from shiftruntime.server.unsupported import check_supported

log = logging.getLogger(__name__)

Body = TypeVar("Body", bound="Request")

MAX_UNKNOWN_NAMES = 256
_OBJECT_PATH = re.compile(r" - at `\$\.?([^`]*)`$")


class StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(msgspec.Struct):
    name: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """One of them is set."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None


class Request(msgspec.Struct, kw_only=True):
    """What completions and chats have in common."""

    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # -1 and 0: no limit
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    n: int = 1
    best_of: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    skip_special_tokens: bool = True
    user: str | None = None  # noted by nobody: shares of the pod go by tenant
    tenant: str = ""
    cache_salt: str = ""
    priority: int = 0  # lower runs first
    timeout_seconds: float | None = None


class CompletionRequest(Request, kw_only=True):
    prompt: str | list[str | int | list[int]]  # all of one kind
    logprobs: int | None = None
    echo: bool = False
    add_special_tokens: bool = True


class NamedFunction(msgspec.Struct):
    name: str


class NamedTool(msgspec.Struct):
    function: NamedFunction
    type: Literal["function"] = "function"


class ChatRequest(Request, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    modalities: list[str] | None = None
    add_generation_prompt: bool | None = None  # None: unless the last message is continued
    continue_final_message: bool = False
    add_special_tokens: bool = False  # templates write them
    chat_template_kwargs: dict[str, Any] | None = None
    include_reasoning: bool = True


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A prompt, or messages as a chat would render them."""

    model: str = ""
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None  # None: as completions, or chats, do
    return_token_strs: bool = False
    add_generation_prompt: bool | None = None  # None: unless the last message is continued
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str = ""


Any_ = TypeVar("Any_", bound=msgspec.Struct)


def read(body: bytes, kind: type[Any_]) -> Any_:
    """The checked request. Raises HttpError that names the field, or Refusal for a feature that is not there."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the second for names in objects
        raise invalid(f"the body is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise invalid(f"the body is a JSON {type(fields).__name__}; an object is needed")
    fields = {name: value for name, value in fields.items() if value is not None}  # null means not given
    _check_names(fields, kind)
    if "structured_outputs" in kind.__struct_fields__:
        fold_guided(fields)
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        path = _OBJECT_PATH.search(str(error))
        raise invalid(str(error), path[1] if path else None) from error


_seen_unknown: set[str] = set()


def _check_names(fields: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    """Raises HttpError or Refusal for names that ask for what is not there; the others that nobody knows are logged."""
    unknown = set(fields) - set(kind.__struct_fields__) - set(GUIDED)
    check_supported(sorted(unknown))
    check_refused({name: fields[name] for name in sorted(unknown)})
    room = MAX_UNKNOWN_NAMES - len(_seen_unknown)
    new = sorted({name[:64] for name in unknown} - _seen_unknown)[:room]
    if new:
        _seen_unknown.update(new)
        log.warning("fields that requests carry and this server ignores: %s", ", ".join(map(repr, new)))
