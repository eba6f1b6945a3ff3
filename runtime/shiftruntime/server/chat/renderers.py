"""Processes that compile and render chat templates, kept warm; one that was ended is started again."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from shiftruntime.server.chat.render_messages import (
    EXIT_NO_MEMORY,
    Compile,
    Failed,
    FromRenderer,
    Render,
    Rendered,
    RenderLimits,
    Started,
    ToRenderer,
)
from shiftruntime.worker.frames import FrameError, FrameSocket

PROCESSES = 2  # more than one, so that a conversation that takes long does not hold up the others
_MODULE = "shiftruntime.server.chat.renderer"
_START_SECONDS = 60.0  # of Python and jinja, on a machine that loads a model at the same time
_EXIT_SECONDS = 3.0
# All that Python needs to start. What else the environment of a pod holds, such as keys, is not for templates.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")


class RenderFailed(Exception):
    """A template that fails or was ended; the sentence goes on after its name."""


class NoRenderer(Exception):
    """No process could be started: not the template's fault, nor the client's."""


class _Ended(Exception):
    """The process is gone; the sentence says which limit it met."""


class Renderers:
    """Usable from several threads at once: those that find all processes at work wait for one."""

    def __init__(self, limits: RenderLimits | None = None, processes: int = PROCESSES) -> None:
        self._limits = limits or RenderLimits()
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()  # the one used last is used next
        for _ in range(processes):
            self._idle.put(None)

    def compile(self, key: str, text: str) -> None:
        """Raises RenderFailed or NoRenderer."""
        with self._process() as process:
            process.know(key, text)

    def render(self, key: str, text: str, values: bytes, now: str) -> str:
        """``values``: a JSON object. ``key`` names ``text``. Raises RenderFailed or NoRenderer."""
        with self._process() as process:
            process.know(key, text)
            answer = process.ask(Render(key, values, now))
            if not isinstance(answer, Rendered):
                raise RenderFailed(f"was ended: its process answered {type(answer).__name__}")
            return answer.text

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._idle.get()
        try:
            process = process or _Process(self._limits)
            yield process
        except BaseException as error:
            if process is not None and not isinstance(error, RenderFailed):
                process.close()
                process = None
            if isinstance(error, _Ended):
                raise RenderFailed(f"was ended: {error}") from error
            raise
        finally:
            self._idle.put(process)


class _Process:
    def __init__(self, limits: RenderLimits) -> None:
        self._limits = limits
        self._known: set[str] = set()
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                *(sys.executable, "-P", "-m", _MODULE),
                *("--socket-fd", str(theirs.fileno()), "--cpu-seconds", str(limits.cpu_seconds)),
                *("--memory-bytes", str(limits.memory_bytes), "--characters", str(limits.characters)),
            ]
            try:
                self._process = subprocess.Popen(
                    command,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    process_group=0,  # Ctrl-C in a terminal is for the front end
                )
            except OSError as error:
                ours.close()
                raise NoRenderer(f"no process for chat templates can be started: {error}") from error
        self._frames: FrameSocket[FromRenderer] = FrameSocket(ours, FromRenderer)
        self._started = False
        # At the end of the program too. Where that is a kill, the renderer sees its socket close.
        self.close = weakref.finalize(self, _end, self._process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def know(self, key: str, text: str) -> None:
        """Compile what was not compiled in this process yet."""
        if key not in self._known:
            self.ask(Compile(key, text))
            self._known.add(key)

    def ask(self, message: ToRenderer) -> FromRenderer:
        """Raises RenderFailed, _Ended when the process is of no more use, NoRenderer when it never was."""
        self._wait_started()
        try:
            self._frames.socket.settimeout(self._limits.wall_seconds)
            self._frames.send(message)
            answer = self._receive(self._limits.wall_seconds)
        except TimeoutError:
            raise _Ended(f"it takes more than {self._limits.wall_seconds:g} s") from None
        except FrameError as error:
            raise _Ended(f"it cannot be exchanged with its process: {error}") from error
        except OSError:
            raise _Ended(self._cause()) from None
        if isinstance(answer, Failed):
            raise RenderFailed(answer.sentence)
        return answer

    def _wait_started(self) -> None:
        if self._started:
            return
        try:
            started = self._receive(_START_SECONDS)
        except TimeoutError:
            raise NoRenderer(f"the process for chat templates did not start within {_START_SECONDS:g} s") from None
        except (OSError, FrameError):
            raise NoRenderer(f"the process for chat templates did not start: {self._exit()}") from None
        if not isinstance(started, Started):
            raise NoRenderer(f"the process for chat templates began with {type(started).__name__}")
        self._started = True

    def _receive(self, seconds: float) -> FromRenderer:
        """The answer; raises TimeoutError, FrameError, or OSError when the process is gone."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._frames.socket.settimeout(left)
            messages = self._frames.receive_available()
            if messages is None:
                raise ConnectionResetError
            if messages:
                return messages[0]
        raise TimeoutError

    def _cause(self) -> str:
        """Which limit the process met."""
        code = self._exit_code()
        if code == -signal.SIGPROF:
            return f"it takes more than {self._limits.cpu_seconds:g} s of processor time"
        if code == EXIT_NO_MEMORY:
            return f"it needs more than {self._limits.memory_bytes >> 20} MiB of memory"
        return f"it ended its process: {self._exit()}"

    def _exit(self) -> str:
        code = self._exit_code()
        if code is None:
            return "closed its channel"
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"

    def _exit_code(self) -> int | None:
        try:
            return self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None


def _end(process: subprocess.Popen[bytes], sock: socket.socket) -> None:
    sock.close()
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel; it ends when that lets it
        process.wait(_EXIT_SECONDS)
