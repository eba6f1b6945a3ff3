"""A model's chat templates: choose one, render a conversation, and say which one failed and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2

from shiftruntime.server.chat import sandbox

DEFAULT = "default"
_FOR_TOOLS = "tool_use"  # the name that publishers give to a second template, for conversations with tools
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

Message = Mapping[str, Any]


class ChatTemplateError(Exception):
    """The template does not compile, or cannot express this conversation; the message names it."""


@dataclass(frozen=True)
class TemplateSources:
    """Templates as the model's files hold them."""

    texts: Mapping[str, str]  # name → jinja source
    variables: Mapping[str, str]  # bos_token, eos_token and other special tokens by their names
    origin: str  # the file, for errors


class ChatTemplates:
    """All templates of one model, compiled."""

    def __init__(self, sources: TemplateSources, now: Callable[[], datetime] = datetime.now) -> None:
        """Raises ChatTemplateError when one does not compile, or when there is none."""
        if not sources.texts:
            raise ChatTemplateError(f"{sources.origin} has no chat template")
        self._sources = sources
        self._environment = sandbox.environment(now)
        self._compiled = {name: self._compile(name, text) for name, text in sources.texts.items()}

    def text(self, with_tools: bool = False) -> str:
        """The source of the template that a conversation gets."""
        return self._sources.texts[self._choose(with_tools)]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. ``variables`` are the template's own, such as enable_thinking. Raises ChatTemplateError."""
        name = self._choose(bool(tools))
        if reserved := _OWN_VARIABLES & set(variables or ()):
            raise ChatTemplateError(f"{', '.join(sorted(reserved))} cannot be given as a variable of a chat template")
        values = {
            **self._sources.variables,
            **(variables or {}),
            "messages": messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render(name, values)
        return self._continued(name, text, messages) if continue_final_message else text

    def _choose(self, with_tools: bool) -> str:
        texts = self._sources.texts
        if with_tools and _FOR_TOOLS in texts:
            return _FOR_TOOLS
        return DEFAULT if DEFAULT in texts else next(iter(texts))

    def _compile(self, name: str, text: str) -> jinja2.Template:
        try:
            return self._environment.from_string(text)
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ChatTemplateError(f"{self._called(name)} does not compile{line}: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise ChatTemplateError(f"{self._called(name)} does not compile: {type(error).__name__}") from error

    def _render(self, name: str, values: Mapping[str, Any]) -> str:
        try:
            with sandbox.budget():
                return _joined(self._compiled[name].generate(values))
        except sandbox.TemplateRefused as error:
            raise ChatTemplateError(f"{self._called(name)} refuses the conversation: {error}") from error
        except sandbox.TemplateTooCostly as error:
            raise ChatTemplateError(f"{self._called(name)} was ended: {error}") from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ChatTemplateError(f"{self._called(name)} fails on this conversation: {error}") from error
        except (ArithmeticError, RecursionError, MemoryError) as error:
            raise ChatTemplateError(f"{self._called(name)} fails: {type(error).__name__}: {error}") from error

    def _continued(self, name: str, text: str, messages: Sequence[Message]) -> str:
        """Cut after the last message's words, so that the model goes on with them."""
        words = str(messages[-1].get("content") or "").strip() if messages else ""
        end = text.rfind(words) + len(words)
        if not words or words not in text:
            raise ChatTemplateError(f"{self._called(name)} does not show the last message, so it cannot be continued")
        return text[:end]

    def _called(self, name: str) -> str:
        return f"chat template {name!r} of {self._sources.origin}"


def _joined(pieces: Any) -> str:
    """The whole text; raises TemplateTooCostly above the bound."""
    parts, characters = [], 0
    for piece in pieces:
        characters += len(piece)
        if characters > sandbox.MAX_CHARACTERS:
            raise sandbox.TemplateTooCostly(f"it renders more than {sandbox.MAX_CHARACTERS} characters")
        parts.append(piece)
    return "".join(parts)
