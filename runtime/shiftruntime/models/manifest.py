"""SHA-256 of every file of a model, in the format of coreutils: ``sha256sum -c SHA256SUMS`` reads it too.

A folder has ``SHA256SUMS`` among its files, a single file ``FILE.sha256`` beside it. Free of torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shiftruntime.errors import model_damaged, model_not_found

FOLDER_MANIFEST = "SHA256SUMS"
FILE_SUFFIX = ".sha256"

# What a loader may read by itself: such a file beside a manifest that does not list it is refused.
READ_SUFFIXES = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".model"})
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".gguf"})
_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+)")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_PIECE_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_THREADS = 4

Progress = Callable[[int, int], None]  # bytes done, bytes in total; called from several threads


class Stopped(Exception):
    """The caller does not want the answer any more."""


@dataclass(frozen=True)
class Manifest:
    path: Path
    files: tuple[tuple[str, str], ...]  # (name relative to ``path``'s folder, hexadecimal SHA-256)

    def file(self, name: str) -> Path:
        return self.path.parent / name


@dataclass(frozen=True)
class Difference:
    file: Path
    found: str  # hexadecimal SHA-256, as the next
    expected: str


def manifest_path(model: str | Path) -> Path:
    """Where the manifest of a model lies, if it has one."""
    model = Path(model)
    return model / FOLDER_MANIFEST if model.is_dir() else model.with_name(model.name + FILE_SUFFIX)


def read_manifest(model: str | Path) -> Manifest | None:
    """The manifest of a model, None if there is none; raises StartupError(ModelDamaged) for one that is no manifest."""
    manifest = _read(manifest_path(model))
    if manifest is not None:
        _check_complete(Path(model), manifest)
    return manifest


def narrow_manifest(model: str | Path, has: Callable[[str], bool]) -> None:
    """Take out of the manifest that came with a model what did not come with it, by name: no file, no sum.

    Raises StartupError(ModelDamaged) when none is left.
    """
    manifest = _read(manifest_path(model))
    if manifest is None:
        return
    kept = tuple((name, digest) for name, digest in manifest.files if has(name))
    if not kept:
        raise model_damaged(f"{manifest.path} lists no file of the model")
    if kept != manifest.files:
        save_manifest(Manifest(manifest.path, kept))


def _read(path: Path) -> Manifest | None:
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise model_damaged(f"{path} has {path.stat().st_size} bytes; it is no manifest")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise model_damaged(f"{path} cannot be read: {error}") from error
    files: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            name, digest = _parse(line, f"{path}, line {number}")
            if files.setdefault(name, digest) != digest:
                raise model_damaged(f"{path}, line {number}: {name} is listed twice with different sums")
    if not files:
        raise model_damaged(f"{path} lists no file; write it anew with `shift-runtime manifest MODEL`")
    return Manifest(path, tuple(sorted(files.items())))


def write_manifest(
    model: str | Path, progress: Progress = lambda done, total: None, stop: threading.Event | None = None
) -> Manifest:
    """Hash every file of a model and write its manifest, whole or not at all; raises StartupError or Stopped."""
    manifest = make_manifest(model, progress, stop)
    save_manifest(manifest)
    return manifest


def make_manifest(
    model: str | Path, progress: Progress = lambda done, total: None, stop: threading.Event | None = None
) -> Manifest:
    """Hash every file of a model; writes nothing. Raises StartupError, or Stopped soon after ``stop`` is set."""
    model = Path(model)
    if not model.exists():
        raise model_not_found(f"{model} does not exist; give a .gguf file or a folder with config.json and safetensors")
    path = manifest_path(model)
    names = [model.name] if model.is_file() else _files_of(model)
    if not names:
        raise model_not_found(f"{model} holds no file to list")
    digests = _hash_all([path.parent / name for name in names], progress, stop or threading.Event())
    return Manifest(path, tuple(zip(names, digests, strict=True)))


def save_manifest(manifest: Manifest) -> None:
    """Whole or not at all."""
    partial = manifest.path.with_name(manifest.path.name + ".partial")
    partial.write_text("".join(_line(name, digest) for name, digest in manifest.files), encoding="utf-8")
    os.replace(partial, manifest.path)


def verify(
    model: str | Path,
    *,
    required: bool = False,
    weights: bool = True,
    progress: Progress = lambda done, total: None,
    stop: threading.Event | None = None,
) -> bool:
    """Compare every file with the manifest; False if there is none.

    ``weights=False`` leaves out the large files. Raises StartupError(ModelDamaged) naming the file and both sums, or
    that a required manifest is not there; raises Stopped soon after ``stop`` is set.
    """
    manifest = read_manifest(model)
    if manifest is None:
        if required:
            raise model_damaged(
                f"{manifest_path(model)} does not exist, and a manifest is required; "
                f"write it with `shift-runtime manifest {model}` where the files are known to be good"
            )
        return False
    for wrong in _differing(manifest, weights, progress, stop):
        raise model_damaged(
            f"{wrong.file} is damaged: its SHA-256 is {wrong.found}, expected {wrong.expected} "
            f"as {manifest.path.name} says; fetch the file again"
        )
    return True


def differing(
    model: str | Path, progress: Progress = lambda done, total: None, stop: threading.Event | None = None
) -> tuple[Difference, ...]:
    """The files that are not what the manifest says; none without a manifest. Raises StartupError for one that is
    listed and not there, and Stopped soon after ``stop`` is set."""
    manifest = _read(manifest_path(model))
    return () if manifest is None else _differing(manifest, True, progress, stop)


def _differing(
    manifest: Manifest, weights: bool, progress: Progress, stop: threading.Event | None
) -> tuple[Difference, ...]:
    listed = [(name, digest) for name, digest in manifest.files if weights or not _is_weights(name)]
    for name, _ in listed:
        if not manifest.file(name).is_file():
            raise model_damaged(f"{manifest.file(name)} is listed in {manifest.path.name} but does not exist")
    found = _hash_all([manifest.file(name) for name, _ in listed], progress, stop or threading.Event())
    return tuple(
        Difference(manifest.file(name), digest, expected)
        for (name, expected), digest in zip(listed, found, strict=True)
        if digest != expected
    )


def _hash_all(files: list[Path], progress: Progress, stop: threading.Event) -> list[str]:
    """Hexadecimal SHA-256 of each file; several at a time, since hashing frees the interpreter."""
    try:
        total = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise model_damaged(f"cannot read the model: {error}") from error
    done, lock = 0, threading.Lock()

    def count(num_bytes: int) -> None:
        nonlocal done
        with lock:
            done += num_bytes
            progress(done, total)

    with ThreadPoolExecutor(max(1, min(_MAX_THREADS, len(os.sched_getaffinity(0)), len(files)))) as pool:
        try:
            return list(pool.map(lambda file: _hash(file, count, stop), files))
        except BaseException:
            stop.set()  # one that fails ends the others
            raise


def _hash(file: Path, count: Callable[[int], None], stop: threading.Event) -> str:
    sha256 = hashlib.sha256()
    buffer = bytearray(_PIECE_BYTES)
    try:
        with file.open("rb", buffering=0) as opened:
            while num_bytes := opened.readinto(buffer):
                if stop.is_set():
                    raise Stopped
                sha256.update(memoryview(buffer)[:num_bytes])
                count(num_bytes)
    except OSError as error:
        raise model_damaged(f"{file} cannot be read: {error}") from error
    return sha256.hexdigest()


def _parse(line: str, where: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise model_damaged(
            f"{where} is no line of a manifest: {line[:80]!r}; expected 64 hex digits, two blanks, a name"
        )
    name = match["name"]
    if match["escaped"]:
        name = re.sub(r"\\[\\nr]", lambda escape: _ESCAPES[escape[0]], name)
    name = name.removeprefix("./")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts:
        raise model_damaged(f"{where} names {name!r}, which is not below the model's folder")
    return str(pure), match["digest"]


def _line(name: str, digest: str) -> str:
    if not any(character in name for character in "\\\n\r"):
        return f"{digest}  {name}\n"
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"\\{digest}  {escaped}\n"


def _files_of(folder: Path) -> list[str]:
    """Every file below a folder but hidden ones and manifests, by relative name."""
    return sorted(name for name in _walk(folder) if PurePosixPath(name).name != FOLDER_MANIFEST)


def _walk(folder: Path) -> Iterable[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and not name.endswith(".partial"):
                yield (Path(where) / name).relative_to(folder).as_posix()


def _check_complete(model: Path, manifest: Manifest) -> None:
    """Raises StartupError(ModelDamaged) if something that is read has no sum."""
    listed = {name for name, _ in manifest.files}
    read = [model.name] if model.is_file() else [name for name in os.listdir(model) if not name.startswith(".")]
    missing = sorted(name for name in read if Path(name).suffix in READ_SUFFIXES and name not in listed)
    if missing:
        raise model_damaged(
            f"{manifest.path} does not list {', '.join(missing[:5])}; "
            f"write it anew with `shift-runtime manifest {model}` if the file belongs to the model"
        )


def _is_weights(name: str) -> bool:
    return PurePosixPath(name).suffix in _WEIGHT_SUFFIXES
