"""What a model family gives: how to read its configuration and what it calls its tensors."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
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
class Reading:
    """Rows of a canonical tensor, and where in a file they are."""

    canonical: str
    first_row: int
    name: str  # in the file
    shape: tuple[int, ...]  # of the whole tensor in the file
    part: tuple[slice, ...] = ()  # of the tensor in the file; empty: all of it


@dataclass(frozen=True)
class Family:
    """One architecture in one file format."""

    config: Callable[[Mapping[str, Any]], ModelConfig]  # from config.json or from GGUF metadata
    names: Mapping[str, str]  # canonical name → name in the file; "{i}" stands for the layer, "{e}" for the expert
    # For files that keep all experts of a layer in one tensor: canonical name → its name, and which half of its rows.
    fused: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # beginnings of names that belong to what we do not serve, such as an image tower

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
        return self.names[name].format(i=layer, e="{e}")

    def readings(self, canonical: str, shape: tuple[int, ...], present: Container[str]) -> Iterator[Reading]:
        """What to read for one canonical tensor, from files that hold the tensors ``present``."""
        _, layer, short = canonical.split(".") if canonical.startswith("layers.") else ("", "", canonical)
        name, half = self.fused.get(short, ("", None))
        if name and name.format(i=layer) in present:
            yield from _fused(canonical, shape, name.format(i=layer), half)
        elif "{e}" in (name := self.file_name(canonical)):
            yield from (Reading(canonical, e, name.format(e=e), shape[1:]) for e in range(shape[0]))
        else:
            yield Reading(canonical, 0, name, shape)


def _fused(canonical: str, shape: tuple[int, ...], name: str, half: int | None) -> Iterator[Reading]:
    """One expert at a time, because a layer's experts together may be large."""
    if len(shape) < 3:
        yield Reading(canonical, 0, name, shape)
        return
    experts, rows, columns = shape
    first = 0 if half is None else half * rows
    whole = shape if half is None else (experts, 2 * rows, columns)
    for e in range(experts):
        yield Reading(canonical, e, name, whole, (slice(e, e + 1), slice(first, first + rows)))


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
