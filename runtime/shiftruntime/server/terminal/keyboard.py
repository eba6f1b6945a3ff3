"""Lines that a person types, read without holding up the event loop and without a thread that outlives it."""

from __future__ import annotations

import asyncio
import os

MAX_LINE_BYTES = 2**20


class Keyboard:
    """Lines of a file descriptor: a terminal, a pipe or a file."""

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._buffer = b""
        self._ended = False

    async def line(self) -> str | None:
        """The next line without its end; None at the end of the input."""
        while b"\n" not in self._buffer and not self._ended and len(self._buffer) < MAX_LINE_BYTES:
            await self._readable()
            data = os.read(self._fd, 65_536)
            self._ended = not data
            self._buffer += data
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8", "replace").rstrip("\r")

    async def rest(self) -> str:
        """Everything up to the end of the input."""
        lines = []
        while (line := await self.line()) is not None:
            lines.append(line)
        return "\n".join(lines)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except PermissionError:  # a regular file is always readable
            return
        try:
            await ready.wait()  # a person may take any time; Ctrl-C cancels it
        finally:
            loop.remove_reader(self._fd)
