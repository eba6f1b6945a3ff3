"""Calls that models write as Python or in a code block, as Gemma's documentation asks for: read whole, never run."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection
from typing import Any

from shiftruntime.server.chat.calls import Parsed, Writer

MAX_CHARACTERS = 64 * 1024
_FENCES = ("```tool_code\n", "```python\n", "```json\n", "```tool_call\n", "```\n")


class PythonCalls:
    """``[f(a=1), g()]``, ``f(a=1)``, ``print(f(a=1))`` or ``{"name": …, "parameters": …}``, bare or in a code block.

    Only an answer that is nothing but calls of known functions is one; everything else is content, as it is.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._writer = Writer()
        self._held = ""
        self._holds = True

    def push(self, text: str) -> Parsed:
        self._held += text
        if self._holds and (len(self._held) > MAX_CHARACTERS or not self._may_be_calls()):
            self._holds = False
        if not self._holds:
            self._writer.content(self._held)
            self._held = ""
        return self._writer.take()

    def finish(self) -> Parsed:
        calls = self._read() if self._holds else None
        if calls is None:
            self._writer.content(self._held)
        for name, arguments in calls or ():
            self._writer.begin(name)
            self._writer.arguments(json.dumps(arguments, ensure_ascii=False))
        self._held = ""
        return self._writer.take_all()

    def _may_be_calls(self) -> bool:
        """Whether the text so far can be the beginning of calls."""
        text = self._held.lstrip()
        for fence in _FENCES:
            if text.startswith(fence):
                text = text[len(fence) :].lstrip()
                break
            if fence.startswith(text):
                return True
        if not text or text[0] == "{":
            return True
        text = text[1:].lstrip() if text[0] == "[" else text
        starts = [start for name in self._names for start in (f"{name}(", f"print({name}(")]
        return any(text.startswith(start) or start.startswith(text) for start in [*starts, "{"])

    def _read(self) -> list[tuple[str, dict[str, Any]]] | None:
        text = _without_fence(self._held.strip())
        calls = _from_json(text) if text.startswith(("{", "[{")) else _from_python(text)
        if not calls or any(name not in self._names for name, _ in calls):
            return None
        return calls


def _without_fence(text: str) -> str:
    """What stands in the code block. No expression: one would look ahead from each blank of a long text."""
    for fence in _FENCES:
        if text.startswith(fence):
            return text[len(fence) :].removesuffix("```").strip()
    return text


def _from_json(text: str) -> list[tuple[str, dict[str, Any]]] | None:
    try:
        value = json.loads(text)
        entries = value if isinstance(value, list) else [value]
        calls = [(entry["name"], entry.get("parameters", entry.get("arguments", {}))) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return calls if all(isinstance(a, dict) and isinstance(n, str) for n, a in calls) else None


def _from_python(text: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Only names called with literal keyword arguments."""
    try:
        body = ast.parse(text, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List) else [body]
        calls = [_call(node) for node in nodes]
        json.dumps([arguments for _, arguments in calls])  # a set or bytes cannot be told to the client
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return calls


def _call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call):
        raise ValueError("no call")
    if isinstance(node.func, ast.Name) and node.func.id == "print" and len(node.args) == 1 and not node.keywords:
        return _call(node.args[0])
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("arguments without a name")
    return ast.unparse(node.func), {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
