"""The header of a GGUF file (version 2 and 3): metadata and where each tensor lies. Neither torch nor numpy.

Layout: magic, version, counts, metadata pairs, tensor table, padding to the alignment, tensor data.
Source: the GGUF specification in the ggml project.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftruntime.errors import model_damaged, model_unsupported

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorEntry:
    """One line of the tensor table."""

    shape: tuple[int, ...]  # slowest dimension first, as torch has it
    kind: int  # ggml type
    offset: int  # bytes from the start of the file


@dataclass(frozen=True)
class GgufHeader:
    path: Path
    metadata: dict[str, Any]  # arrays as tuples
    tensors: dict[str, TensorEntry]
    file_bytes: int


def eos_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """End of text, and end of a turn where the header names one."""
    found = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> tuple[str, ...]:
        data, position, size = self._data, self.position, len(self._data)
        length_at = struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            end = position + 8 + length_at(data, position)[0]
            if end > size:
                raise EOFError(f"a string ends at byte {end}")
            values.append(data[position + 8 : end].decode("utf-8", "surrogateescape"))
            position = end
        self.position = position
        return tuple(values)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        if count > len(self._data):
            raise EOFError(f"an array of {count} items")
        if item == _STRING:
            return self.strings(count)
        if item == _ARRAY:
            return tuple(self.value(_ARRAY) for _ in range(count))
        values = struct.unpack_from(f"<{count}{_SCALARS[item]}", self._data, self.position)
        self.position += struct.calcsize(f"<{count}{_SCALARS[item]}")
        return values


def read_header(path: Path) -> GgufHeader:
    """Raises StartupError: ModelDamaged if the header is cut or senseless, ModelUnsupported for another version."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise model_damaged(f"{path} does not start with {_MAGIC.decode()}; it is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(path, _Cursor(data), file_bytes)
            except (struct.error, EOFError, KeyError, RecursionError) as error:
                raise model_damaged(
                    f"{path}: header is cut or damaged in a file of {file_bytes} bytes: {error}"
                ) from error


def _parse(path: Path, cursor: _Cursor, file_bytes: int) -> GgufHeader:
    cursor.position = len(_MAGIC)
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise model_unsupported(f"{path}: GGUF version {version}; supported: {', '.join(map(str, _VERSIONS))}")
    num_tensors, num_pairs = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    table: dict[str, TensorEntry] = {}
    for _ in range(num_tensors):
        name, dimensions = cursor.string(), cursor.scalar("I")
        shape = tuple(reversed([cursor.scalar("Q") for _ in range(dimensions)]))
        if name in table:
            raise model_damaged(f"{path}: tensor {name} is there twice")
        table[name] = TensorEntry(shape, cursor.scalar("I"), cursor.scalar("Q"))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise model_damaged(f"{path}: general.alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: TensorEntry(entry.shape, entry.kind, start + entry.offset) for name, entry in table.items()}
    return GgufHeader(path, metadata, tensors, file_bytes)
