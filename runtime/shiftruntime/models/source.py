"""Opening a model: a GGUF file, or a folder with config.json and safetensors. Never pickle, never code from a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shiftruntime.config import ModelConfig
from shiftruntime.errors import model_not_found, model_unsupported
from shiftruntime.models.family import Piece as Piece
from shiftruntime.models.gguf_source import GgufSource
from shiftruntime.models.safetensors_source import SafetensorsSource
from shiftruntime.models.tokenizer import Tokenizer


class ModelSource(Protocol):
    """A model on disk whose header has been read."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def quantisation(self) -> str:
        """How weights are stored: none, fp8, int8, mixed of these, or gguf, whose tensors have types of their own."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """All tensors, each in one or several pieces of rows; raises StartupError(ModelDamaged)."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Raises StartupError."""
        ...


def open_model(path: str | Path, quantisation: str = "auto") -> ModelSource:
    """Read the header; raises StartupError with ModelNotFound, ModelDamaged or ModelUnsupported, which a model is that
    is not stored as asked for."""
    source = _open(Path(path))
    if quantisation not in ("auto", source.quantisation):
        raise model_unsupported(
            f"{path}: its weights are stored as {source.quantisation}, and quantization {quantisation} was asked for; "
            "give another checkpoint, or auto to take this one as it is"
        )
    return source


def _open(path: Path) -> ModelSource:
    if not path.exists():
        raise model_not_found(f"{path} does not exist; give a .gguf file or a folder with config.json and safetensors")
    if path.is_dir():
        return SafetensorsSource(path)
    if path.suffix == ".gguf":
        return GgufSource(path)
    raise model_unsupported(f"{path} is no .gguf file and no folder with config.json and safetensors")
