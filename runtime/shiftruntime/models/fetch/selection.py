"""Which files of a repository or bucket make a model: never one that can hold code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from shiftruntime.errors import model_not_found, model_unsupported
from shiftruntime.models.manifest import FILE_SUFFIX, FOLDER_MANIFEST, READ_SUFFIXES


@dataclass(frozen=True)
class RemoteFile:
    name: str  # relative to the model's folder
    num_bytes: int
    tag: str  # changes with the content
    sha256: str | None = None  # where the other side knows it


def select(files: Sequence[RemoteFile], where: str, single: str | None = None) -> tuple[RemoteFile, ...]:
    """The files to fetch, sums last; raises StartupError when they make no model that can be served.

    ``single``: one GGUF file and its manifest. Otherwise a folder with config.json and safetensors, or the only GGUF
    file.
    """
    safe = (file for file in files if _is_safe(file.name))
    ordered = sorted(safe, key=lambda file: (is_manifest(file.name), file.name))
    weights = [file for file in ordered if file.name.endswith(".gguf")]
    if single is None and not any(file.name.endswith(".safetensors") for file in ordered):
        if not weights:
            raise _nothing(files, where)
        if len(weights) > 1:
            names = ", ".join(file.name for file in weights)
            raise model_unsupported(f"{where} has several GGUF files; name one of them: {names}")
        single = weights[0].name
    if single is not None:
        chosen = tuple(file for file in ordered if file.name in (single, single + FILE_SUFFIX))
        if single not in {file.name for file in chosen}:
            raise model_not_found(
                f"{where} has no file {single}; it has: {', '.join(f.name for f in weights) or 'none'}"
            )
        return chosen
    # Original checkpoints lie in folders of their own beside the converted one; we read the top.
    return tuple(file for file in ordered if belongs_to_folder(file.name))


def is_manifest(name: str) -> bool:
    return PurePosixPath(name).name == FOLDER_MANIFEST or name.endswith(FILE_SUFFIX)


def belongs_to_folder(name: str) -> bool:
    """Whether a file is fetched with the folder that it lies in."""
    return _is_safe(name) and "/" not in name and not name.endswith((".gguf", FILE_SUFFIX))


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
        f"{where} has neither safetensors nor GGUF files; files that can hold code are not fetched "
        f"(there are {', '.join(other) or 'no other files'}). Convert the model to safetensors"
    )
