"""Entry of a process that compiles and renders chat templates; started by the front end, never by a person.

It may use little: memory up to a bound, processor time up to a bound for each message, no files beyond those it was
started with, no further processes. It ends when the front end does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import jinja2
import msgspec

from shiftruntime.server.chat import sandbox
from shiftruntime.server.chat.render_messages import (
    EXIT_NO_MEMORY,
    Compile,
    Compiled,
    Failed,
    FromRenderer,
    Render,
    Rendered,
    RenderLimits,
    Started,
    ToRenderer,
)
from shiftruntime.worker.frames import FrameSocket

_MAX_SENTENCE = 2000  # characters; a template chooses what it says when it refuses


class TooLong(jinja2.TemplateError):
    """The prompt exceeds its bound."""


def main() -> int:
    args = _parse(sys.argv[1:])
    limits = RenderLimits(args.cpu_seconds, memory_bytes=args.memory_bytes, characters=args.characters)
    frames: FrameSocket[ToRenderer] = FrameSocket(socket.socket(fileno=args.socket_fd), ToRenderer)
    _confine(limits)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the front end is gone
        _serve(_Renderer(limits.characters), frames, limits)
    return 0


def _serve(renderer: _Renderer, frames: FrameSocket[ToRenderer], limits: RenderLimits) -> None:
    frames.send(Started())
    while (message := frames.receive()) is not None:
        # Its signal ends the process, wherever it is; the front end then says why.
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
        frames.send(renderer.answer(message))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _confine(limits: RenderLimits) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    used_pages = int(Path("/proc/self/statm").read_text().split()[0])
    for kind, most in (
        (resource.RLIMIT_AS, used_pages * resource.getpagesize() + limits.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError):  # where memory runs out all the same, the kernel ends this process first
        Path("/proc/self/oom_score_adj").write_text("1000")


class _Renderer:
    """The compiled templates of one process."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self._now = datetime.min
        self._environment = sandbox.environment(lambda: self._now)
        self._compiled: dict[str, jinja2.Template] = {}

    def answer(self, message: ToRenderer) -> FromRenderer:
        try:
            return self._compile(message) if isinstance(message, Compile) else self._render(message)
        except MemoryError:
            os._exit(EXIT_NO_MEMORY)

    def _compile(self, message: Compile) -> FromRenderer:
        try:
            self._compiled[message.key] = self._environment.from_string(message.text)
        except MemoryError:
            raise
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            return _failed(f"does not compile{line}: {error}")
        except Exception as error:  # noqa: BLE001 - a template may bring two compilers to any error
            return _failed(f"does not compile: {type(error).__name__}")
        return Compiled()

    def _render(self, message: Render) -> FromRenderer:
        self._now = datetime.fromisoformat(message.now)
        try:
            pieces = self._compiled[message.key].generate(msgspec.json.decode(message.values))
            text = _joined(pieces, self._max_characters)
            text.encode()  # half a surrogate pair cannot be told, nor tokenised
            return Rendered(text)
        except MemoryError:
            raise
        except sandbox.TemplateRefused as error:
            return _failed(f"refuses the conversation: {error}")
        except TooLong as error:
            return _failed(f"was ended: {error}")
        except (ArithmeticError, RecursionError) as error:
            return _failed(f"fails: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever its expressions come to
            return _failed(f"fails on this conversation: {error}")


def _joined(pieces: Iterable[str], most: int) -> str:
    parts, characters = [], 0
    for piece in pieces:
        characters += len(piece)
        if characters > most:
            raise TooLong(f"it renders more than {most} characters")
        parts.append(piece)
    return "".join(parts)


def _failed(sentence: str) -> Failed:
    return Failed(sentence[:_MAX_SENTENCE].encode(errors="replace").decode())


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shiftruntime.server.chat.renderer", description=__doc__)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--characters", type=int, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
