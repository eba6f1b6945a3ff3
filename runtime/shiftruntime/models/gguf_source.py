"""A GGUF file as a model: tensors dequantised to float32 piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch

from shiftruntime.errors import model_damaged, model_unsupported
from shiftruntime.models import gemma3, gguf_config
from shiftruntime.models.family import Family, Piece
from shiftruntime.models.gguf_file import TensorEntry, read_header
from shiftruntime.models.shapes import tensor_shapes
from shiftruntime.models.tokenizer import Tokenizer

FAMILIES: dict[str, Family] = dict.fromkeys(gguf_config.ARCHITECTURES, gguf_config.FAMILY)
FAMILIES |= {gemma3.GGUF_ARCHITECTURE: gemma3.GGUF_FAMILY}
_ROTATED = (".q", ".k", ".q_bias", ".k_bias")
_PIECE_ELEMENTS = 4 * 1024 * 1024  # dequantised at once, 16 MiB


class GgufSource:
    """Reads the header at once, weights only when asked; raises StartupError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        architecture = self._header.metadata.get("general.architecture")
        family = FAMILIES.get(str(architecture))
        if family is None:
            raise model_unsupported(f"{path}: GGUF architecture {architecture!r}; supported: {', '.join(FAMILIES)}")
        self.config = family.read(self._header.metadata | self._beside_the_header(), path)
        self._pairs_rows = architecture in gguf_config.PAIRED_ROWS
        self._entries = {
            canonical: self._entry(family.file_name(canonical), shape)
            for canonical, shape in tensor_shapes(self.config).items()
        }
        self._refuse_rest({family.file_name(canonical) for canonical in self._entries})

    @property
    def quantisation(self) -> str:
        return "gguf"

    def _beside_the_header(self) -> dict[str, Any]:
        """What a configuration must know about the tensors."""
        factors: tuple[float, ...] = ()
        entry = self._header.tensors.get(gguf_config.ROPE_FACTORS_TENSOR)
        if entry is not None:
            checked = self._entry(gguf_config.ROPE_FACTORS_TENSOR, entry.shape)
            factors = tuple(_dequantise(numpy.memmap(self.path, dtype=numpy.uint8, mode="r"), checked, 0, 1).tolist())
        return {gguf_config.TENSORS: frozenset(self._header.tensors), gguf_config.ROPE_FACTORS: factors}

    def _refuse_rest(self, read: set[str]) -> None:
        """A tensor that nobody reads would change what the model says."""
        rest = sorted(self._header.tensors.keys() - read - {gguf_config.ROPE_FACTORS_TENSOR})
        if rest:
            raise model_unsupported(
                f"{self.path}: tensor {rest[0]}{f' and {len(rest) - 1} more' if len(rest) > 1 else ''} has no meaning "
                f"for {self.config.architecture}"
            )

    def _entry(self, name: str, shape: tuple[int, ...]) -> TensorEntry:
        """The table line of a tensor, checked for presence, shape, type and that all its bytes are there."""
        entry = self._header.tensors.get(name)
        if entry is None:
            raise model_damaged(f"{self.path}: tensor {name} with shape {shape} is missing")
        if entry.shape != shape:
            raise model_damaged(f"{self.path}: tensor {name} has shape {entry.shape}, expected {shape}")
        if entry.kind not in list(gguf.GGMLQuantizationType):
            raise model_unsupported(f"{self.path}: tensor {name} has the unknown ggml type {entry.kind}")
        if shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(entry.kind)][0]:
            raise model_damaged(f"{self.path}: rows of {shape[-1]} in tensor {name} do not fit its type's blocks")
        end = entry.offset + math.prod(shape[:-1]) * _row_bytes(entry)
        if end > self._header.file_bytes:
            raise model_damaged(
                f"{self.path}: tensor {name} ends at byte {end} of {self._header.file_bytes}; the file is truncated"
            )
        return entry

    def pieces(self) -> Iterator[Piece]:
        """All tensors as float32 pieces of rows, in canonical order."""
        data = numpy.memmap(self.path, dtype=numpy.uint8, mode="r")
        for canonical, entry in self._entries.items():
            rows = math.prod(entry.shape[:-1])
            step = max(1, _PIECE_ELEMENTS // entry.shape[-1])
            paired = self._pairs_rows and canonical.endswith(_ROTATED)
            if paired:  # whole heads
                step = -(-step // self.config.head_dim) * self.config.head_dim
            for first in range(0, rows, step):
                some = _dequantise(data, entry, first, min(step, rows - first)).view(-1, *entry.shape[1:])
                yield Piece(canonical, first, _unpaired(some, self.config.head_dim) if paired else some)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self._header)


def _unpaired(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Row 2i and 2i + 1 of a head → rows i and i + head_dim / 2, as RoPE here pairs them; [heads * head_dim, ...]."""
    return rows.view(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _row_bytes(entry: TensorEntry) -> int:
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(entry.kind)]
    return entry.shape[-1] // block_elements * block_bytes


def _dequantise(data: numpy.memmap, entry: TensorEntry, first: int, rows: int) -> torch.Tensor:
    """Rows [first, first + rows) as float32 [rows * columns]."""
    row_bytes = _row_bytes(entry)
    start = entry.offset + first * row_bytes
    raw = numpy.asarray(data[start : start + rows * row_bytes]).reshape(rows, row_bytes)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(entry.kind))
    return torch.from_numpy(numpy.array(values, dtype=numpy.float32).reshape(-1))
