"""What a model family gives: how to read its configuration and what it calls its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from shiftruntime.config import ModelConfig
from shiftruntime.errors import model_damaged


@dataclass(frozen=True)
class Piece:
    """Rows of one tensor on their way from a file into the arena."""

    name: str  # canonical
    first_row: int
    rows: Tensor  # [some rows, ...]


@dataclass(frozen=True)
class Family:
    """One architecture in one file format."""

    config: Callable[[Mapping[str, Any]], ModelConfig]  # from config.json or from GGUF metadata
    names: Mapping[str, str]  # canonical name → name in the file; "{i}" stands for the layer

    def read(self, raw: Mapping[str, Any], file: Path) -> ModelConfig:
        """The configuration; raises StartupError, also for values of a kind that nobody writes."""
        try:
            return self.config(raw)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise model_damaged(f"{file}: unusable model configuration: {error!r}") from error

    def file_name(self, canonical: str) -> str:
        """``layers.3.q`` → what the file calls it."""
        if not canonical.startswith("layers."):
            return self.names[canonical]
        _, layer, name = canonical.split(".")
        return self.names[name].format(i=layer)


def required(raw: Mapping[str, Any], key: str, kind: type[int] | type[float], where: str) -> Any:
    """A number that must be there; raises StartupError(ModelDamaged) naming key and value."""
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise model_damaged(f"{where}: {key} must be a number, found {value!r}")
    return kind(value)


def token_ids(value: object) -> tuple[int, ...]:
    """``eos_token_id`` is a number, a list or absent."""
    if isinstance(value, int):
        return (value,)
    return tuple(item for item in value if isinstance(item, int)) if isinstance(value, list) else ()
