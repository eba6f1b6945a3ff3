"""Which files of a repository or bucket make a model: never one that can hold code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from shiftruntime.errors import model_damaged, model_not_found, model_unsupported
from shiftruntime.models.manifest import FILE_SUFFIX, FOLDER_MANIFEST, READ_SUFFIXES
from shiftruntime.models.safetensors_header import INDEX, SINGLE, SUFFIX, weights_read

_MAX_INDEX_BYTES = 64 << 20  # some 500,000 tensors


@dataclass(frozen=True)
class RemoteFile:
    name: str  # relative to the model's folder
    num_bytes: int
    tag: str  # changes with the content
    sha256: str | None = None  # where the other side knows it


@dataclass(frozen=True)
class Selection:
    """The files to fetch, sums last, and what a manifest that comes with them may list."""

    files: tuple[RemoteFile, ...]
    single: str | None = None  # the only file of the model, its manifest aside
    weights: frozenset[str] | None = None  # safetensors that are read, if others may lie beside them

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def lists(self, name: str) -> bool:
        """Whether a file of this name, relative to the model's folder, comes with the model if it is there at all."""
        if self.single is not None:
            return name == PurePosixPath(self.single).name
        read = self.weights is None or not name.endswith(SUFFIX) or name in self.weights
        return read and belongs_to_folder(name)


def index_to_read(files: Sequence[RemoteFile], where: str, single: str | None = None) -> str | None:
    """The file that ``select`` needs to see first, if there is one; raises StartupError(ModelDamaged)."""
    index = next((file for file in files if file.name == INDEX), None)
    if single is not None or index is None or not any(_is_folder_weight(file.name) for file in files):
        return None
    if index.num_bytes > _MAX_INDEX_BYTES:
        raise model_damaged(f"{where}: {INDEX} has {index.num_bytes} bytes; it is no index")
    return index.name


def select(files: Sequence[RemoteFile], where: str, single: str | None = None, index: bytes | None = None) -> Selection:
    """What to fetch; raises StartupError when it makes no model that can be served.

    ``single``: one GGUF file and its manifest. Otherwise a folder with config.json and those safetensors that are read,
    or the only GGUF file. ``index``: the content of the file that ``index_to_read`` names.
    """
    safe = (file for file in files if _is_safe(file.name))
    ordered = sorted(safe, key=lambda file: (is_manifest(file.name), file.name))
    if single is None and any(_is_folder_weight(file.name) for file in ordered):
        return _folder(ordered, where, index)
    weights = [file for file in ordered if file.name.endswith(".gguf")]
    if single is None:
        if not weights:
            raise _nothing(files, where)
        if len(weights) > 1:
            names = ", ".join(file.name for file in weights)
            raise model_unsupported(f"{where} has several GGUF files; name one of them: {names}")
        single = weights[0].name
    chosen = tuple(file for file in ordered if file.name in (single, single + FILE_SUFFIX))
    if single not in {file.name for file in chosen}:
        raise model_not_found(f"{where} has no file {single}; it has: {', '.join(f.name for f in weights) or 'none'}")
    return Selection(chosen, single)


def _folder(ordered: Sequence[RemoteFile], where: str, index: bytes | None) -> Selection:
    """Original checkpoints lie in folders of their own beside the converted one, or beside its weights; we read the
    weights at the top that a loader reads."""
    top = [file for file in ordered if belongs_to_folder(file.name)]
    weights = [file.name for file in top if file.name.endswith(SUFFIX)]
    read = frozenset(weights_read(weights, _json(index, where), f"{where}: "))
    files = tuple(file for file in top if not file.name.endswith(SUFFIX) or file.name in read)
    return Selection(files, weights=read if index is not None or SINGLE in read else None)


def _json(index: bytes | None, where: str) -> object:
    try:
        return None if index is None else json.loads(index)
    except ValueError as error:
        raise model_damaged(f"{where}: {INDEX} is no JSON: {error}") from error


def is_manifest(name: str) -> bool:
    return PurePosixPath(name).name == FOLDER_MANIFEST or name.endswith(FILE_SUFFIX)


def belongs_to_folder(name: str) -> bool:
    """Whether a file is fetched with the folder that it lies in."""
    return _is_safe(name) and "/" not in name and not name.endswith((".gguf", FILE_SUFFIX))


def _is_folder_weight(name: str) -> bool:
    return belongs_to_folder(name) and name.endswith(SUFFIX)


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(part.startswith(".") for part in path.parts):
        return False
    return path.suffix in READ_SUFFIXES | {FILE_SUFFIX} or path.name in (FOLDER_MANIFEST, "merges.txt", "vocab.txt")


def _nothing(files: Sequence[RemoteFile], where: str) -> Exception:
    other = sorted({PurePosixPath(file.name).suffix for file in files if not _is_safe(file.name)} - {""})
    if not files:
        return model_not_found(f"{where} is empty or does not exist")
    return model_unsupported(
        f"{where} has neither safetensors at its top nor GGUF files; files that can hold code are not fetched "
        f"(there are {', '.join(other) or 'no other files'}). Convert the model to safetensors"
    )
