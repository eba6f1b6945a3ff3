"""Functions that a model may call: how it is told, how its calls are read, and how it is made to call."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import Any

from shiftruntime.engine.messages import Grammar
from shiftruntime.server.chat.call_parsers import LLAMA_MARKER, MISTRAL_MARKER, HermesCalls, LlamaCalls, MistralCalls
from shiftruntime.server.chat.call_python import PythonCalls
from shiftruntime.server.chat.calls import CallParser
from shiftruntime.server.chat.messages import Tool

MAX_TOOLS = 256
_ID_LENGTH = 9
_ID_CHARACTERS = string.ascii_letters + string.digits
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Family(StrEnum):
    """How a model writes calls."""

    HERMES = "hermes"  # also Qwen
    MISTRAL = "mistral"
    LLAMA = "llama3_json"
    PYTHON = "pythonic"  # Gemma, and models whose template says nothing about functions


PARSERS: dict[Family, Callable[[Sequence[str]], CallParser]] = {
    Family.HERMES: lambda names: HermesCalls(),
    Family.MISTRAL: lambda names: MistralCalls(),
    Family.LLAMA: LlamaCalls,
    Family.PYTHON: PythonCalls,
}
# Special tokens that must not be hidden from the parser.
MARKERS = {Family.MISTRAL: (MISTRAL_MARKER, "[ARGS]", "[CALL_ID]"), Family.LLAMA: (LLAMA_MARKER,)}


class InvalidTools(Exception):
    """Functions that cannot be offered to the model; the text says why."""


def family_of(template: str) -> Family:
    """What the model was trained to write, by what its chat template shows it."""
    if MISTRAL_MARKER in template:
        return Family.MISTRAL
    if "<tool_call>" in template:
        return Family.HERMES
    if LLAMA_MARKER in template or ("<|start_header_id|>" in template and "tools" in template):
        return Family.LLAMA
    return Family.PYTHON


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises InvalidTools."""
    names = [tool.function.name for tool in tools]
    if len(tools) > MAX_TOOLS:
        raise InvalidTools(f"{len(tools)} tools; at most {MAX_TOOLS} are allowed")
    for name in names:
        if not 1 <= len(name) <= 64 or not all(char.isalnum() or char in "_-." for char in name):
            raise InvalidTools(f"function name {name[:80]!r} is not 1 to 64 letters, digits, '_', '-' or '.'")
    if len(set(names)) < len(names):
        raise InvalidTools("two tools have the same name")


def grammar_of_one(tool: Tool) -> Grammar:
    """Only the arguments of this function."""
    return Grammar("json_schema", json.dumps(tool.function.parameters or _ANY_OBJECT))


def grammar_of_any(tools: Sequence[Tool], parallel: bool) -> Grammar:
    """A list of at least one call; definitions move to the top, where their references look for them."""
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        parameters = dict(tool.function.parameters or _ANY_OBJECT)
        for key in ("$defs", "definitions"):
            own = parameters.pop(key, {})
            if not isinstance(own, dict):
                raise InvalidTools(f"{key} of function {tool.function.name!r} is no object of definitions")
            for name, definition in own.items():
                if definitions.setdefault(key, {}).setdefault(name, definition) != definition:
                    raise InvalidTools(f"two tools define {key}/{name} differently; rename one of them")
        name_schema = {"type": "string", "enum": [tool.function.name]}
        calls.append(
            {
                "type": "object",
                "properties": {"name": name_schema, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, **definitions}
    return Grammar("json_schema", json.dumps(schema if parallel else schema | {"maxItems": 1}))


def new_call_id() -> str:
    """Templates of Mistral refuse any other form; for everybody else it is a name like another."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))


def with_short_ids(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates of Mistral: ids that another server gave become short ones, the same for call and result."""
    turns = []
    for message in messages:
        turn = dict(message)
        if message.get("tool_calls"):
            turn["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]
        if "tool_call_id" in message:
            turn["tool_call_id"] = _short_id(message["tool_call_id"])
        turns.append(turn)
    return turns


def _short_id(call_id: str) -> str:
    if len(call_id) == _ID_LENGTH and call_id.isascii() and call_id.isalnum():
        return call_id
    return sha256(call_id.encode()).hexdigest()[:_ID_LENGTH]


def described(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], shows_system: bool
) -> list[dict[str, Any]]:
    """For a template that knows no functions: the same conversation in roles and words that it does know.

    Where it does not show system messages, the first turn of the user begins with the words about functions.
    """
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    words = (
        "You can call functions. To call them, answer with nothing but a list "
        '[{"name": function name, "parameters": object of arguments}]. Functions:\n' + functions
    )
    turns = _in_words(messages)
    if not shows_system:
        first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), None)
        if first is None:
            return [{"role": "user", "content": words}, *turns]
        return [*turns[:first], _joined({"role": "user", "content": words + "\n"}, turns[first]), *turns[first + 1 :]]
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{words}"}, *turns[1:]]
    return [{"role": "system", "content": words}, *turns]


def _in_words(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results are turns of the user; neighbours become one turn, because roles may have to alternate."""
    turns: list[dict[str, Any]] = []
    was_result = False
    for message in messages:
        turn, is_result = _turn_in_words(message), message["role"] == "tool"
        if turns and turns[-1]["role"] == turn["role"] == "user" and (is_result or was_result):
            turns[-1] = _joined(turns[-1], turn)
        else:
            turns.append(turn)
        was_result = is_result
    return turns


def _joined(turn: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {**turn, "content": f"{turn['content']}\n{more['content']}"}


def _turn_in_words(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"```tool_output\n{message['content']}\n```"}
    if message.get("tool_calls"):
        calls = [call["function"] for call in message["tool_calls"]]
        written = [{"name": call["name"], "parameters": call["arguments"]} for call in calls]
        return {"role": "assistant", "content": json.dumps(written, ensure_ascii=False)}
    return message
