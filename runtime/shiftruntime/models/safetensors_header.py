"""Which tensors lie in which safetensors file of a folder: read from the headers, before any weight. No torch.

A file starts with the length of its JSON header; Hugging Face's index names the files of a sharded checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftruntime.errors import model_damaged, model_not_found

INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
SINGLE = "model.safetensors"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as the format spells it: F32, BF16, ...


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name → where it is; raises StartupError: ModelNotFound without weights, ModelDamaged for files that disagree."""
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        for name, tensor in _read_header(file).items():
            if name in found:
                raise model_damaged(
                    f"tensor {name} is in {found[name].file} and in {file}; remove the file that does not belong"
                )
            found[name] = tensor
    return found


def read_json(file: Path, why: str = "") -> dict[str, Any]:
    """An object; ``why`` says what a missing file is needed for. Raises StartupError."""
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise model_not_found(f"{file} does not exist; {why}") from error
    except ValueError as error:
        raise model_damaged(f"{file} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise model_damaged(f"{file} holds no JSON object")
    return raw


def weights_read(names: Iterable[str], index: object, where: str) -> tuple[str, ...]:
    """Which of a folder's files hold the weights: the index decides, then the one file that Hugging Face would read,
    then all there are.

    ``index``: the content of INDEX, None without one. Raises StartupError(ModelDamaged), which begins with ``where``.
    """
    there = {name for name in names if name.endswith(SUFFIX)}
    if index is None:
        return (SINGLE,) if SINGLE in there else tuple(sorted(there))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not _all_text(weight_map.values()):
        raise model_damaged(f"{where}{INDEX} has no weight_map from tensors to files")
    named = sorted({Path(name).name for name in weight_map.values()})
    for name in named:
        if name not in there:
            raise model_damaged(f"{where}{name} is named in {INDEX} but does not exist")
    return tuple(named)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else None
    files = weights_read((file.name for file in folder.glob(f"*{SUFFIX}")), index, f"{folder}/")
    if not files:
        raise model_not_found(f"{folder} holds no *{SUFFIX} file")
    return tuple(folder / name for name in files)


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Raises StartupError(ModelDamaged) if the file is not as long as it says."""
    actual = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(_MAX_HEADER_BYTES, actual - _LENGTH_BYTES):
            raise model_damaged(f"{file}: header of {length} bytes in a file of {actual} bytes")
        try:
            header = json.loads(opened.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
            tensors = {
                name: StoredTensor(file, tuple(map(int, entry["shape"])), str(entry["dtype"]))
                for name, entry in entries.items()
            }
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise model_damaged(f"{file}: unreadable header: {error}") from error
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    if actual != expected:
        raise model_damaged(f"{file}: {actual} bytes, expected {expected}; it is truncated or damaged")
    return tensors
