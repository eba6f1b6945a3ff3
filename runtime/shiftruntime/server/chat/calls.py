"""What a parser of a model's text tells: content for the reader, and calls of functions, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class CallDelta:
    """New of one call; the first delta of a call has its name."""

    index: int
    name: str | None = None
    arguments: str = ""  # JSON text, to be appended


@dataclass(frozen=True)
class Parsed:
    content: str = ""
    calls: tuple[CallDelta, ...] = ()


class CallParser(Protocol):
    """Fed with text in order. However the text is split into pushes, content and calls add up to the same."""

    def push(self, text: str) -> Parsed: ...
    def finish(self) -> Parsed:
        """What was held back, once no more text can come."""
        ...


class PlainText:
    """For answers without tools."""

    def push(self, text: str) -> Parsed:
        return Parsed(text)

    def finish(self) -> Parsed:
        return Parsed()


class Writer:
    """Collects what one push brings. White space beside calls is nobody's; without calls the text stays as it is."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._calls: list[CallDelta] = []
        self._space = ""
        self._after_call = False
        self.num_calls = 0

    def content(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        body = text.rstrip()
        if body:
            self._content += [self._space, body]
            self._space = ""
        self._space += text[len(body) :]

    def begin(self, name: str) -> None:
        self._space, self._after_call = "", True
        self._calls.append(CallDelta(self.num_calls, name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """Of the call that was begun last."""
        if text:
            self._calls.append(CallDelta(self.num_calls - 1, arguments=text))

    def take(self) -> Parsed:
        parsed = Parsed("".join(self._content), tuple(self._calls))
        self._content, self._calls = [], []
        return parsed

    def take_all(self) -> Parsed:
        if not self.num_calls:
            self._content.append(self._space)
        self._space = ""
        return self.take()


def pending(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that is the beginning of a marker, and not all of it."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
