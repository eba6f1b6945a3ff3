"""Messages as clients send them, and as chat templates read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from shiftruntime.server.unsupported import check_supported

MAX_MESSAGES = 4096


class InvalidMessage(Exception):
    """A message that no template could express; the text names it."""


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct):
    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(msgspec.Struct, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    function: Function
    type: Literal["function"] = "function"


def for_template(messages: Sequence[Message], knows_developer: bool = False) -> list[dict[str, Any]]:
    """Plain data for a template. Raises InvalidMessage, or Refusal for what is no text.

    Arguments of past calls become objects, because templates write them with ``tojson``; ``developer`` is called
    ``system`` for a template that does not know it.
    """
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidMessage(f"messages has {len(messages)} entries; 1 to {MAX_MESSAGES} are allowed")
    return [_plain(index, message, knows_developer) for index, message in enumerate(messages)]


def tools_for_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = msgspec.to_builtins(tools)
    return plain


def _plain(index: int, message: Message, knows_developer: bool) -> dict[str, Any]:
    if message.content is None and message.role != "assistant":
        raise InvalidMessage(f"messages[{index}] of role {message.role} has no content")
    role = "system" if message.role == "developer" and not knows_developer else message.role
    plain: dict[str, Any] = {"role": role, "content": _text(index, message.content)}
    if message.name is not None:
        plain["name"] = message.name
    if message.role == "assistant" and message.tool_calls:
        plain["tool_calls"] = [_call(index, call) for call in message.tool_calls]
    if message.role == "assistant" and message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.role == "tool":
        plain["tool_call_id"] = message.tool_call_id or ""
    return plain


def _text(index: int, content: str | list[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        check_supported([part.type])
        if part.type not in ("text", "input_text", "refusal") or part.text is None:
            raise InvalidMessage(f"messages[{index}] has a part of type {part.type!r}; only text is supported")
    return "\n".join(part.text or "" for part in content)


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")  # unlike json: no half of a surrogate pair
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidMessage(
                f"messages[{index}]: the arguments of {call.function.name!r} are no JSON: {error}"
            ) from error
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
