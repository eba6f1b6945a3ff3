"""A model's thoughts before its answer: what stands between <think> and </think> at the beginning of the text."""

from __future__ import annotations

from dataclasses import dataclass

from shiftruntime.server.chat.calls import pending

BEGIN, END = "<think>", "</think>"
_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Split:
    reasoning: str = ""
    content: str = ""


class ReasoningSplitter:
    """Fed with text in order; white space around the thoughts is dropped."""

    def __init__(self, begun: bool = False) -> None:
        """``begun``: the prompt ended inside the thoughts already."""
        self._stage = "thoughts" if begun else "beginning"
        self._held = ""
        self._skips_space = begun

    def push(self, text: str) -> Split:
        text, self._held = self._held + text, ""
        reasoning = ""
        if self._stage == "beginning":
            text = self._begin(text)
        if self._stage == "thoughts":
            reasoning, text = self._think(text)
        if self._stage == "gap":
            text = text.lstrip(_SPACE)
            self._stage = "content" if text else "gap"
        return Split(reasoning, text)

    def finish(self) -> Split:
        held, self._held = self._held, ""
        if self._stage == "thoughts":
            return Split(reasoning=held.rstrip(_SPACE))
        return Split(content=held)

    def _begin(self, text: str) -> str:
        """Thoughts begin with the first word or not at all."""
        start = text.lstrip(_SPACE)
        if start.startswith(BEGIN):
            self._stage, self._skips_space = "thoughts", True
            return start[len(BEGIN) :]
        if BEGIN.startswith(start):
            self._held = text
            return ""
        self._stage = "content"
        return text

    def _think(self, text: str) -> tuple[str, str]:
        """(thoughts, content)."""
        if self._skips_space:
            text = text.lstrip(_SPACE)
            self._skips_space = not text
        end = text.find(END)
        if end >= 0:
            self._stage = "gap"
            return text[:end].rstrip(_SPACE), text[end + len(END) :]
        shown = text[: len(text) - pending(text, (END,))].rstrip(_SPACE)
        self._held = text[len(shown) :]
        return shown, ""
