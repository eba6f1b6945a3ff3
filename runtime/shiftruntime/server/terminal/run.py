"""The two verbs: one prompt, or a conversation."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TextIO

from shiftruntime.engine.client import EngineFailed
from shiftruntime.errors import StartupError
from shiftruntime.server import text_source
from shiftruntime.server.chat.reasoning import BEGIN, END, ReasoningSplitter, Split
from shiftruntime.server.chat.template import ChatTemplateError, ChatTemplates
from shiftruntime.server.frontend import Text
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.report import failure_line
from shiftruntime.server.request import Delta
from shiftruntime.server.terminal.cli import TerminalOptions
from shiftruntime.server.terminal.keyboard import Keyboard
from shiftruntime.server.terminal.screen import Screen, Timing, safe, statistics
from shiftruntime.server.terminal.session import EngineFactory, Interrupted, Session, session

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
HELP = """\
/help    this
/reset   forget the conversation
/stats   steps and tokens per gear, the KV cache
/quit    leave; so does the end of the input (Ctrl-D)
Everything else is a message. Ctrl-C ends an answer, and twice the chat."""


def run(options: TerminalOptions, make_engine: EngineFactory) -> int:
    """Exit code: 0, 1 for a failure, 130 after Ctrl-C."""
    screen = Screen(sys.stderr, sys.stderr.isatty())
    load_text: Callable[[str], Text] = partial(text_source.load, chat_template=options.chat_template)
    return asyncio.run(_run(options, screen, make_engine, load_text, sys.stdout, Keyboard(sys.stdin.fileno())))


async def _run(
    options: TerminalOptions,
    screen: Screen,
    make_engine: EngineFactory,
    load_text: Callable[[str], Text],
    out: TextIO,
    keyboard: Keyboard,
) -> int:
    try:
        async with session(options, screen, make_engine, load_text) as running:
            if options.prompt is None:
                return await Chat(options, running, screen, out).talk(keyboard)
            prompt = await keyboard.rest() if options.prompt == "-" else options.prompt
            return await _generate(options, running, screen, out, prompt)
    except (StartupError, EngineFailed) as failure:
        screen.note(failure_line(failure))
    except Refusal as refusal:
        screen.note(f"shift-runtime: {refusal.message}")
    except Interrupted:
        screen.note("ended")
        return EXIT_INTERRUPTED
    return EXIT_FAILED


async def _generate(options: TerminalOptions, running: Session, screen: Screen, out: TextIO, prompt: str) -> int:
    """Raises Refusal or EngineFailed."""
    timing, last = Timing(), None
    async with aclosing(running.answer(prompt, options.sampling, add_special_tokens=True)) as deltas:
        async for delta in deltas:
            timing.add(delta)
            _show(out, safe(delta.text, out))
            last = delta
    _show(out, "\n")
    screen.note(timing.line(last))
    return EXIT_INTERRUPTED if running.interrupted else EXIT_OK


@dataclass
class Chat:
    """A conversation and its commands."""

    options: TerminalOptions
    running: Session
    screen: Screen
    out: TextIO
    messages: list[dict[str, Any]] = field(default_factory=list)

    async def talk(self, keyboard: Keyboard) -> int:
        """Raises StartupError without a template, or EngineFailed."""
        templates = self._templates()
        self._reset()
        self.screen.note("/help lists commands; Ctrl-C ends an answer")
        while True:
            if self.screen.terminal:
                _show(self.out, "> ")
            with self.running.asking(lambda: self.screen.note("\nCtrl-C again, or /quit, leaves")):
                line = await keyboard.line()
            if line is None or line.strip() == "/quit":
                return EXIT_OK
            if line.startswith("/"):
                await self._command(line.strip())
            elif line.strip():
                await self._answer(templates, line)

    def _templates(self) -> ChatTemplates:
        templates = self.running.text.chat
        if templates is None:
            raise StartupError(
                "InvalidArgument",
                f"{self.running.text.chat_error}; give one with --chat-template, or use shift-runtime generate",
            )
        return templates

    def _reset(self) -> None:
        system = self.options.system
        self.messages = [{"role": "system", "content": system}] if system else []

    async def _command(self, word: str) -> None:
        match word:
            case "/help":
                self.screen.note(HELP)
            case "/reset":
                self._reset()
                self.screen.note("the conversation is forgotten")
            case "/stats":
                for line in statistics(await self.running.frontend.state()):
                    self.screen.note(line)
            case _:
                self.screen.note(f"{word} is no command; /help lists them")

    async def _answer(self, templates: ChatTemplates, line: str) -> None:
        """What the model says joins the conversation, also the part of it before Ctrl-C."""
        self.messages.append({"role": "user", "content": line})
        try:
            prompt = await templates.render_soon(self.messages)
            content = await self._say(prompt, END in templates.text())
        except (ChatTemplateError, Refusal) as error:
            self.running.check()
            self.messages.pop()
            hint = "; /reset forgets the conversation" if getattr(error, "reason", "") == "PromptTooLong" else ""
            self.screen.note(f"{error}{hint}")
            return
        self.messages.append({"role": "assistant", "content": content})

    async def _say(self, prompt: str, thinks: bool) -> str:
        """The answer's text, shown as it comes; thoughts are dim and are not kept."""
        splitter = ReasoningSplitter(prompt.rstrip().endswith(BEGIN)) if thinks else None
        timing, content, last = Timing(), "", None
        answer = self.running.answer(prompt, self.options.sampling, add_special_tokens=False)
        async with aclosing(answer) as deltas:
            async for delta in deltas:
                timing.add(delta)
                content += self._show_split(splitter, delta)
                last = delta
        _show(self.out, "\n")
        self.screen.note(timing.line(last))
        return content

    def _show_split(self, splitter: ReasoningSplitter | None, delta: Delta) -> str:
        splits = [splitter.push(delta.text) if splitter else Split(content=delta.text)]
        if splitter and delta.finish is not None:
            splits.append(splitter.finish())
        for split in splits:
            if split.reasoning:
                _show(self.out, self.screen.dim(safe(split.reasoning, self.out)))
            if split.content:
                _show(self.out, safe(split.content, self.out))
        return "".join(split.content for split in splits)


def _show(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()
