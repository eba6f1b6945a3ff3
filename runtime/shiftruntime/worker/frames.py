"""Typed messages over a stream socket: a length, then msgpack that is checked against the expected types."""

from __future__ import annotations

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from shiftruntime.errors import ShiftError

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 16
# Beside msgspec's own error: text that is no UTF-8, nesting without end, and values that a type refuses at its birth.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeError, RecursionError, ShiftError)

M = TypeVar("M")


class FrameError(RuntimeError):
    """The peer sent something that is no frame of this protocol."""


def pack(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a {type(message).__name__} of {len(body)} bytes exceeds the frame limit {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameBuffer(Generic[M]):
    """Collects bytes and yields the messages that are complete."""

    def __init__(self, types: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(types)
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """Messages completed by ``data``; raises FrameError."""
        self._bytes += data
        messages: list[M] = []
        while len(self._bytes) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._bytes)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes exceeds the limit {MAX_FRAME_BYTES}")
            end = _LENGTH.size + size
            if len(self._bytes) < end:
                break
            try:
                messages.append(self._decoder.decode(memoryview(self._bytes)[_LENGTH.size : end]))
            except _UNDECODABLE as error:
                raise FrameError(f"a frame of {size} bytes does not decode: {error}") from error
            del self._bytes[:end]
        return messages


class FrameSocket(Generic[M]):
    """A connected stream socket that sends any message and receives those of one union."""

    def __init__(self, sock: socket.socket, types: Any) -> None:
        self.socket = sock
        self._buffer: FrameBuffer[M] = FrameBuffer(types)
        self._ready: list[M] = []

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: msgspec.Struct) -> None:
        self.socket.sendall(pack(message))

    def receive(self) -> M | None:
        """The next message, waiting for it; None when the peer is gone."""
        while not self._ready:
            data = self.socket.recv(_READ_BYTES)
            if not data:
                return None
            self._ready = self._buffer.feed(data)
        return self._ready.pop(0)

    def receive_available(self) -> list[M] | None:
        """After the socket became readable: what is complete by now; None when the peer is gone."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            return None
        return self._buffer.feed(data)

    def close(self) -> None:
        self.socket.close()
