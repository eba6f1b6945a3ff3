"""One call as models write it in JSON, read by characters: the name when it is known, arguments as they come."""

from __future__ import annotations

import json
from enum import Enum, auto

_ARGUMENTS = ("arguments", "parameters")  # Hermes, Qwen and Mistral say the first, Llama and Gemma the second
_SPACE = " \t\r\n"


class _At(Enum):
    OPEN = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    NEXT = auto()
    DONE = auto()
    BROKEN = auto()


class CallObject:
    """``{"name": …, "arguments": {…}}`` with keys in any order; other keys are passed over.

    Arguments are not checked to be JSON: what a model writes is what the client gets, as early as possible.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._at = _At.OPEN
        self._raw: list[str] = []
        self._key = ""
        self._token: list[str] = []  # of a key, or of a value that is needed whole
        self._ready: list[str] = []  # argument text that nobody has taken yet
        self._wrote_arguments = False
        self._first = ""  # character of the value that is being read
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._ends_with_value = False

    @staticmethod
    def of(name: str) -> CallObject:
        """Only the arguments follow; the name is known."""
        call = CallObject()
        call.name, call._key, call._at, call._ends_with_value = name, _ARGUMENTS[0], _At.VALUE, True
        return call

    @property
    def done(self) -> bool:
        return self._at is _At.DONE

    @property
    def broken(self) -> bool:
        """The last character that was read cannot stand where it stands."""
        return self._at is _At.BROKEN

    @property
    def raw(self) -> str:
        """Everything read so far."""
        return "".join(self._raw)

    def push(self, text: str) -> str:
        """Read up to the end of the object; returns what comes after it (or after the character that broke it)."""
        for used, char in enumerate(text):
            if self.done or self.broken:
                return text[used:]
            self._raw.append(char)
            self._step(char)
        return ""

    def take_arguments(self) -> str:
        """Argument text that is new. Empty while the name is unknown; ``{}`` for a call without arguments."""
        if self.name is None:
            return ""
        taken = "".join(self._ready)
        self._ready.clear()
        if self.done and not self._wrote_arguments and not taken:
            taken = "{}"
        self._wrote_arguments |= bool(taken)
        return taken

    def _step(self, char: str) -> None:
        if self._at is _At.IN_KEY:
            self._read_key(char)
        elif self._at is _At.IN_VALUE:
            self._read_value(char)
        elif char not in _SPACE:
            self._read_mark(char)

    def _read_mark(self, char: str) -> None:
        """A character between keys and values."""
        match self._at, char:
            case _At.OPEN, "{":
                self._at = _At.KEY
            case _At.KEY, '"':
                self._at, self._token, self._escaped = _At.IN_KEY, [char], False
            case ((_At.KEY | _At.NEXT), "}"):
                self._at = _At.DONE
            case _At.COLON, ":":
                self._at = _At.VALUE
            case _At.NEXT, ",":
                self._at = _At.KEY
            case _At.VALUE, _ if char in '"{[' or char.isalnum() or char == "-":
                self._begin_value(char)
            case _:
                self._at = _At.BROKEN

    def _read_key(self, char: str) -> None:
        self._token.append(char)
        if self._ends_string(char):
            key = _decoded(self._token)
            self._key, self._at = key or "", _At.COLON if key is not None else _At.BROKEN

    def _begin_value(self, char: str) -> None:
        self._at, self._first, self._token = _At.IN_VALUE, char, []
        self._depth, self._in_string, self._escaped = int(char in "{["), char == '"', False
        self._keep(char)

    def _read_value(self, char: str) -> None:
        if self._first == '"':
            self._keep(char)
            if self._ends_string(char):
                self._end_value()
        elif self._first in "{[":
            self._keep(char)
            self._follow_nesting(char)
            if self._depth == 0:
                self._end_value()
        elif char in _SPACE or char in ",}":
            self._end_value()
            self._step(char)
        else:
            self._keep(char)

    def _follow_nesting(self, char: str) -> None:
        if self._in_string:
            self._in_string = not self._ends_string(char)
        elif char == '"':
            self._in_string, self._escaped = True, False
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1

    def _ends_string(self, char: str) -> bool:
        """Whether this character of a string is its closing quote."""
        if self._escaped:
            self._escaped = False
            return False
        self._escaped = char == "\\"
        return char == '"'

    def _keep(self, char: str) -> None:
        """An object of arguments streams; everything else is needed whole."""
        streams = self._key in _ARGUMENTS and self._first == "{"
        (self._ready if streams else self._token).append(char)

    def _end_value(self) -> None:
        self._at = _At.DONE if self._ends_with_value else _At.NEXT
        if self._key == "name" and self._first == '"':
            self.name = _decoded(self._token)
        elif self._key in _ARGUMENTS and self._first == '"':  # JSON inside a string
            self._ready.append(_decoded(self._token) or "")


def _decoded(token: list[str]) -> str | None:
    try:
        value = json.loads("".join(token), strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
