"""A model's chat templates: choose one, render a conversation, and say which one failed and why."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

import grpc
import msgspec
from shiftprotos import contract

from shiftruntime.server.chat.renderers import PROCESSES, NoRenderer, Renderers, RenderFailed
from shiftruntime.server.refusal import Refusal

DEFAULT = "default"
_FOR_TOOLS = "tool_use"  # the name that publishers give to a second template, for conversations with tools
_MARK = "continued"
MAX_WAITING = 256  # conversations; more could only wait until their clients are gone
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

Message = Mapping[str, Any]
T = TypeVar("T")


class ChatTemplateError(Exception):
    """The template does not compile, or cannot express this conversation; the message names it."""


@dataclass(frozen=True)
class TemplateSources:
    """Templates as the model's files hold them."""

    texts: Mapping[str, str]  # name → jinja source
    variables: Mapping[str, str]  # bos_token, eos_token and other special tokens by their names
    origin: str  # the file, for errors


class ChatTemplates:
    """All templates of one model, compiled; they run in processes of their own."""

    def __init__(
        self,
        sources: TemplateSources,
        now: Callable[[], datetime] = datetime.now,
        renderers: Renderers | None = None,
    ) -> None:
        """Raises ChatTemplateError when one does not compile, or when there is none; NoRenderer."""
        if not sources.texts:
            raise ChatTemplateError(f"{sources.origin} has no chat template")
        self._sources = sources
        self._now = now
        self._renderers = renderers or Renderers()
        self._keys = {name: sha256(text.encode(errors="replace")).hexdigest() for name, text in sources.texts.items()}
        self._threads = ThreadPoolExecutor(PROCESSES, "chat templates")  # of their own: others must not wait for them
        self._waiting = 0
        self._shows_system: bool | None = None  # until somebody asks
        for name, text in sources.texts.items():
            self._compile(name, text)

    def text(self, with_tools: bool = False) -> str:
        """The source of the template that a conversation gets."""
        return self._sources.texts[self._choose(with_tools)]

    async def shows_system(self) -> bool:
        """Whether a system message reaches the model: some templates refuse the role, some leave it out."""
        if self._shows_system is None:
            self._shows_system = await self._in_thread(self._try_system)
        return self._shows_system

    def _try_system(self) -> bool:
        mark = "a word for the system"
        try:
            return mark in self.render([{"role": "system", "content": mark}, {"role": "user", "content": "?"}])
        except ChatTemplateError:
            return False

    async def render_soon(self, *arguments: Any) -> str:
        """As ``render``, for an event loop. Raises ChatTemplateError, or Refusal where the pod is at fault."""
        return await self._in_thread(partial(self.render, *arguments))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            text = f"{self._waiting} conversations wait for the chat template; retry later"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, contract.REFUSED_QUEUE_FULL, text)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except NoRenderer as error:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, contract.REASON_INTERNAL, str(error)) from error
        finally:
            self._waiting -= 1

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. ``variables`` are the template's own, such as enable_thinking.

        A message that is continued is the last thing in it. Raises ChatTemplateError or NoRenderer.
        """
        name = self._choose(bool(tools))
        if reserved := _OWN_VARIABLES & set(variables or ()):
            raise ChatTemplateError(f"{', '.join(sorted(reserved))} cannot be given as a variable of a chat template")
        mark = _MARK + secrets.token_hex(16) if continue_final_message else ""
        values = {
            **self._sources.variables,
            **(variables or {}),
            "messages": self._marked(messages, mark) if mark else messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        text = self._render(name, values)
        return self._cut(name, text, mark) if mark else text

    def _choose(self, with_tools: bool) -> str:
        texts = self._sources.texts
        if with_tools and _FOR_TOOLS in texts:
            return _FOR_TOOLS
        return DEFAULT if DEFAULT in texts else next(iter(texts))

    def _compile(self, name: str, text: str) -> None:
        try:
            self._renderers.compile(self._keys[name], text)
        except RenderFailed as error:
            raise ChatTemplateError(f"{self._called(name)} {error}") from error
        except UnicodeError as error:
            raise ChatTemplateError(f"{self._called(name)} is no text: {error}") from error

    def _render(self, name: str, values: Mapping[str, Any]) -> str:
        try:
            encoded = msgspec.json.encode(values)
        except (UnicodeError, RecursionError, ValueError, TypeError) as error:
            raise ChatTemplateError(f"{self._called(name)} cannot be given this conversation: {error}") from error
        try:
            text = self._sources.texts[name]
            return self._renderers.render(self._keys[name], text, encoded, self._now().isoformat())
        except RenderFailed as error:
            raise ChatTemplateError(f"{self._called(name)} {error}") from error

    def _marked(self, messages: Sequence[Message], mark: str) -> list[Message]:
        """With a mark behind the last words, because words alone may also stand elsewhere in the prompt."""
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str) or not content.strip():
            raise ChatTemplateError("the last message has no words, so it cannot be continued")
        return [*messages[:-1], {**messages[-1], "content": f"{content}{mark} "}]

    def _cut(self, name: str, text: str, mark: str) -> str:
        """The prompt up to the mark. Where the template trims contents, it would have trimmed this one."""
        end = text.rfind(mark)
        if end < 0:
            raise ChatTemplateError(f"{self._called(name)} does not show the last message, so it cannot be continued")
        return text[:end] if text.startswith(" ", end + len(mark)) else text[:end].rstrip()

    def _called(self, name: str) -> str:
        return f"chat template {name!r} of {self._sources.origin}"
