"""One choice of a chat: its text becomes thoughts, content and calls of functions."""

from __future__ import annotations

from dataclasses import dataclass, field

from shiftruntime.server.chat.calls import CallDelta, CallParser, Parsed
from shiftruntime.server.chat.reasoning import ReasoningSplitter, Split


@dataclass(frozen=True)
class Piece:
    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


@dataclass
class Call:
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """Fed with text in order; also adds up what it has told."""

    parser: CallParser
    splitter: ReasoningSplitter | None = None
    parallel: bool = True  # otherwise calls after the first are dropped
    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)

    def push(self, text: str) -> Piece:
        split = self.splitter.push(text) if self.splitter else Split(content=text)
        return self._piece(split.reasoning, self.parser.push(split.content))

    def finish(self) -> Piece:
        """The rest, once no more text can come."""
        split = self.splitter.finish() if self.splitter else Split()
        last, rest = self.parser.push(split.content), self.parser.finish()
        return self._piece(split.reasoning, Parsed(last.content + rest.content, last.calls + rest.calls))

    def _piece(self, reasoning: str, parsed: Parsed) -> Piece:
        calls = tuple(delta for delta in parsed.calls if self.parallel or delta.index == 0)
        self.reasoning += reasoning
        self.content += parsed.content
        for delta in calls:
            if delta.name is not None:
                self.calls.append(Call(delta.name))
            self.calls[delta.index].arguments += delta.arguments
        return Piece(reasoning, parsed.content, calls)
