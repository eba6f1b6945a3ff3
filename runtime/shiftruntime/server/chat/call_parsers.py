"""Calls that models write as JSON: Hermes and Qwen, Mistral, Llama 3, and what a grammar has forced."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from shiftruntime.server.chat.call_json import CallObject
from shiftruntime.server.chat.calls import Parsed, Writer, pending

MISTRAL_MARKER = "[TOOL_CALLS]"
LLAMA_MARKER = "<|python_tag|>"
HERMES_MARKER, _HERMES_END = "<tool_call>", "</tool_call>"
_MISTRAL_NAME = re.compile(r"\s*([\w.\-]{1,128})(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*")
_MAX_MISTRAL_HEAD = 256


class _JsonCalls:
    """Reads text in states; a state takes a text and returns what it leaves to the next one."""

    def __init__(self, marker: str, names: Collection[str] | None = None) -> None:
        """``names``: only these are calls, everything else is content. None: any name."""
        self._marker = marker
        self._names = names
        self._writer = Writer()
        self._state: Callable[[str], str] = self._text
        self._held = ""
        self._call = CallObject()
        self._begun = False
        self._introduction = ""  # what to give back in front of a call that turns out to be none

    def push(self, text: str) -> Parsed:
        while text:
            text = self._state(text)
        return self._writer.take()

    def finish(self) -> Parsed:
        if self._state == self._in_call and not self._begun:
            self._held = self._introduction + self._call.raw
        self._writer.content(self._held)
        self._held = ""
        return self._writer.take_all()

    def _text(self, text: str) -> str:
        """Content up to the marker."""
        text, self._held = self._held + text, ""
        start = text.find(self._marker) if self._marker else -1
        if start >= 0:
            self._writer.content(text[:start])
            self._introduction = self._marker
            self._state = self._after_marker
            return text[start + len(self._marker) :]
        shown = len(text) - pending(text, (self._marker,))
        self._writer.content(text[:shown])
        self._held = text[shown:]
        return ""

    def _after_marker(self, text: str) -> str:
        return self._start(CallObject(), text)

    def _start(self, call: CallObject, text: str) -> str:
        self._call, self._begun, self._state = call, False, self._in_call
        return self._in_call(text)

    def _in_call(self, text: str) -> str:
        rest = self._call.push(text)
        name = self._call.name
        if name is not None and not self._begun:
            if self._names is not None and name not in self._names:
                return self._give_back(rest)
            self._begun = True
            self._writer.begin(name)
        if self._begun:
            self._writer.arguments(self._call.take_arguments())
        if self._call.done or self._call.broken:
            if not self._begun:
                return self._give_back(rest)
            self._held, self._introduction, self._state = "", "", self._after_call
        return rest

    def _give_back(self, rest: str) -> str:
        """It was no call: all of it is content, in which a call may still follow."""
        self._writer.content(self._introduction)
        self._state, self._held = self._text, ""
        return self._call.raw + rest

    def _after_call(self, text: str) -> str:
        self._state = self._text
        return text


class HermesCalls(_JsonCalls):
    """``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, any number, between content."""

    def __init__(self) -> None:
        super().__init__(HERMES_MARKER)

    def _after_call(self, text: str) -> str:
        """The end mark, if it is there."""
        text, self._held = (self._held + text).lstrip(), ""
        if text.startswith(_HERMES_END):
            self._state = self._text
            return text[len(_HERMES_END) :]
        if _HERMES_END.startswith(text):
            self._held = text
            return ""
        self._state = self._text
        return text


class MistralCalls(_JsonCalls):
    """``[TOOL_CALLS]`` and a list of calls, or ``[TOOL_CALLS]name{…}`` once per call as newer ones write."""

    def __init__(self) -> None:
        super().__init__(MISTRAL_MARKER)
        self._in_list = False

    def _after_marker(self, text: str) -> str:
        text, self._held = self._held + text, ""
        start = text.lstrip()
        if not start:
            self._held = text
            return ""
        self._in_list = start[0] == "["
        if start[0] == "{":
            return self._start(CallObject(), text)
        if self._in_list:
            self._introduction += "["
            self._state = self._item
            return start[1:]
        self._state = self._head
        return text

    def _item(self, text: str) -> str:
        """Between the calls of a list."""
        text = text.lstrip(" \t\r\n,")
        if not text:
            return ""
        if text[0] == "{":
            return self._start(CallObject(), text)
        if text[0] != "]":
            self._writer.content(self._introduction)
            self._introduction = ""
        self._state = self._text
        return text[1:] if text[0] == "]" else text

    def _head(self, text: str) -> str:
        """A name before its arguments."""
        text, self._held = self._held + text, ""
        head, brace, arguments = text.partition("{")
        if not brace and len(head) <= _MAX_MISTRAL_HEAD:
            self._held = text
            return ""
        match = _MISTRAL_NAME.fullmatch(head) if brace else None
        if match is None:
            self._writer.content(self._introduction + head)
            self._state = self._text
            return brace + arguments
        return self._start(CallObject.of(match[1]), brace + arguments)

    def _after_call(self, text: str) -> str:
        self._state = self._item if self._in_list else self._text
        return text

    def finish(self) -> Parsed:
        if self._state in (self._after_marker, self._item, self._head):
            self._held = self._introduction + self._held
        return super().finish()


class LlamaCalls(_JsonCalls):
    """An answer that is one or more ``{"name": …, "parameters": {…}}`` from its beginning on, or after the mark."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(LLAMA_MARKER, names)
        self._state = self._beginning

    def _beginning(self, text: str) -> str:
        """Whether the answer, or what follows a call, is a call."""
        text, self._held = self._held + text, ""
        start = text.lstrip(" \t\r\n;," if self._writer.num_calls else " \t\r\n")
        if not start:
            self._held = text
            return ""
        if start[0] == "{":
            self._introduction = text[: len(text) - len(start)]
            return self._start(CallObject(), start)
        self._state = self._text
        return text

    def _give_back(self, rest: str) -> str:
        """Objects inside an answer are not calls: only a mark begins one now."""
        raw = self._call.raw
        self._writer.content(self._introduction + raw)
        self._state, self._held = self._text, ""
        return rest

    def _after_call(self, text: str) -> str:
        self._state = self._beginning
        return text


class RequiredCalls(_JsonCalls):
    """A list of calls, as the grammar of ``tool_choice: required`` makes the model write it."""

    def __init__(self) -> None:
        super().__init__("")
        self._state = self._items

    def _items(self, text: str) -> str:
        text = text.lstrip(" \t\r\n,[]")
        return self._start(CallObject(), text) if text else ""

    def _give_back(self, rest: str) -> str:
        self._writer.content(self._call.raw + rest)
        self._state = self._text
        return ""

    def _after_call(self, text: str) -> str:
        self._state = self._items
        return text


class NamedCall(_JsonCalls):
    """Only the arguments, as the grammar of a named function makes the model write them."""

    def __init__(self, name: str) -> None:
        super().__init__("")
        self._call = CallObject.of(name)
        self._state = self._in_call
