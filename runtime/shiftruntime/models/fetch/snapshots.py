"""Versions of one model side by side. Each lies in a folder of its own that never changes once it is there, so that
pods which start, run and fetch at the same time never see two versions mixed.

In the area of a model: ``ID`` is a whole version, ``ID.partial`` one that is being fetched, ``ID.lock`` is held by
those who read it, ``.current`` says which one was fetched last. Only the holder of the area's lock makes and removes
versions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

from shiftruntime.errors import StartupError
from shiftruntime.models.fetch.lock import try_lock
from shiftruntime.models.fetch.selection import RemoteFile, Selection, is_manifest
from shiftruntime.models.fetch.storage import write_whole
from shiftruntime.models.manifest import manifest_path, read_manifest

log = logging.getLogger(__name__)

_POINTER = ".current"
_TAGS = ".tags.json"  # of a version's files, by name
_SUMS = ".sums.json"  # by name, of files that another version had: their SHA-256 as it knew them
_PARTIAL, _LOCK = ".partial", ".lock"
_ID = re.compile(r"[0-9a-f]{40}")


def version_of(files: tuple[RemoteFile, ...]) -> str:
    """The name of what these files are together. Without their tags it is like no other: nothing could be shared."""
    known = [(file.name, file.num_bytes, file.tag or os.urandom(20).hex()) for file in files]
    return hashlib.sha256(json.dumps(sorted(known)).encode()).hexdigest()[:40]


class Snapshots:
    def __init__(self, area: Path) -> None:
        self.area = area

    @property
    def lock(self) -> Path:
        return self.area / _LOCK

    def current(self) -> Path | None:
        """The model that was fetched last, whole or not at all."""
        pointed = self._pointed()
        if pointed is None:
            return None
        path = self._model(*pointed)
        return path if path.exists() else None

    def take(self, version: str, chosen: Selection) -> Path | None:
        """Make a version that is there the current one; None when it is not there, or on its way out."""
        reader = Reader()
        path = self._model(version, chosen.single or "")
        try:
            if not manifest_path(path).exists() or not reader.keep(path):
                return None
            self._point(version, chosen.single or "")
            return path
        finally:
            reader.close()

    def begin(self, version: str, chosen: Selection) -> Path:
        """The folder to fetch a version into, with what other versions have of it. Only under the lock."""
        folder, whole = self.area / (version + _PARTIAL), self.area / version
        if whole.exists() and not folder.exists():
            whole.rename(folder)  # somebody took files of it away
        shutil.rmtree(whole, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        others = [other for other in self._folders() if other != folder]
        write_whole(folder / _TAGS, json.dumps({file.name: file.tag for file in chosen.files}))
        for other in others:
            _share(other, folder, chosen)
        return folder

    def finish(self, version: str, chosen: Selection) -> Path:
        """Put a version into its place, and take away the others that nobody reads. Only under the lock."""
        # Before there is anything to read.
        (self.area / (version + _LOCK)).touch()
        (self.area / (version + _PARTIAL)).rename(self.area / version)
        self._point(version, chosen.single or "")
        self.tidy()
        return self._model(version, chosen.single or "")

    def tidy_soon(self) -> None:
        """Tidy, unless somebody fetches."""
        try:
            file = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o664)
        except OSError as error:
            log.info("old versions in %s are left to others: %s", self.area, error)
            return
        try:
            if try_lock(file, self.lock, fcntl.LOCK_EX):
                self.tidy()
        finally:
            os.close(file)

    def tidy(self) -> None:
        """Take away what is not current and what nobody reads, as far as this user may. Only under the lock."""
        for folder in self._folders():
            if folder.name.endswith(_PARTIAL):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                self._remove(folder)
            except OSError as error:
                log.info("%s is left there: %s", folder, error)

    def _remove(self, folder: Path) -> None:
        lock = _lock_of(folder)
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o664)
        try:
            if not try_lock(file, lock, fcntl.LOCK_EX):
                return
            pointed = self._pointed()  # only now: a reader makes it current while it keeps it
            if pointed is not None and pointed[0] == folder.name:
                return
            # A version that is taken away in part must not look whole.
            going = folder.with_name(folder.name + _PARTIAL)
            folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)
            log.info("%s was replaced by a newer version, and is removed", folder)
        finally:
            os.close(file)

    def _folders(self) -> list[Path]:
        """Of all versions, whole and in part."""
        return [path for path in self.area.iterdir() if _ID.fullmatch(path.name.removesuffix(_PARTIAL))]

    def _model(self, version: str, single: str) -> Path:
        return self.area / version / single if single else self.area / version

    def _pointed(self) -> tuple[str, str] | None:
        try:
            version, single = (self.area / _POINTER).read_text().split("\n")[:2]
        except (FileNotFoundError, ValueError):
            return None
        return (version, single) if _ID.fullmatch(version) else None

    def _point(self, version: str, single: str) -> None:
        write_whole(self.area / _POINTER, f"{version}\n{single}\n")


class Reader:
    """Keeps versions from being taken away, until it is closed or the process ends."""

    def __init__(self) -> None:
        self._files: list[int] = []

    def keep(self, path: str | Path) -> bool:
        """False when the version at ``path`` is going or gone, for a newer one. What is no version needs no care."""
        folder = _version_folder(Path(path))
        if folder is None:
            return True
        try:
            file = os.open(_lock_of(folder), os.O_RDONLY | os.O_CREAT, 0o664)
        except FileNotFoundError:
            return False
        self._files.append(file)
        return try_lock(file, folder, fcntl.LOCK_SH) and Path(path).exists()

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())


def _version_folder(path: Path) -> Path | None:
    return next(
        (folder for folder in (path, *path.parents) if _ID.fullmatch(folder.name) and _is_area(folder.parent)), None
    )


def _is_area(folder: Path) -> bool:
    return (folder / _POINTER).exists()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _share(source: Path, target: Path, chosen: Selection) -> None:
    """What one version has of another: no byte twice. Where there are no links, files are fetched."""
    tags, sums = _strings(source / _TAGS), known_sums(source, chosen.single)
    # A manifest was narrowed to the files beside it.
    alike = [f for f in chosen.files if f.tag and tags.get(f.name) == f.tag and not is_manifest(f.name)]
    known = {file.name: sums[file.name] for file in alike if file.name in sums}
    # Before there is a link, for whoever goes on after a crash.
    write_whole(target / _SUMS, json.dumps(_strings(target / _SUMS) | known))
    in_part = source.name.endswith(_PARTIAL)
    for file in alike:
        have, want = source / file.name, target / file.name
        want.parent.mkdir(parents=True, exist_ok=True)
        try:
            if have.is_file() and have.stat().st_size == file.num_bytes and not want.exists():
                # What nobody can say of whether it is still whole is fetched.
                if in_part or file.name in sums:
                    os.link(have, want)
            elif in_part and partial_of(have).is_file() and not partial_of(want).exists():
                partial_of(have).rename(partial_of(want))  # nobody goes on with it: we have the lock
        except OSError as error:
            log.info("%s is fetched again: it cannot be linked (%s)", file.name, error)


def known_sums(folder: Path, single: str | None) -> dict[str, str]:
    """Hexadecimal SHA-256 by name, of files that were whole before: what has lain there for long may have rotted, and a
    sum that is taken of it now would hide that."""
    try:
        manifest = read_manifest(folder / single if single else folder)
    except StartupError as damaged:
        log.info("%s", damaged.message)
        manifest = None
    sums = _strings(folder / _SUMS)
    if manifest is not None:
        # As the bucket names them: the manifest of one file in a folder of its own does without that folder.
        sums |= {manifest.file(name).relative_to(folder).as_posix(): digest for name, digest in manifest.files}
    return sums


def partial_of(file: Path) -> Path:
    """Where a file grows before it is whole."""
    return file.with_name(file.name + _PARTIAL)


def _strings(file: Path) -> dict[str, str]:
    try:
        raw = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(name): str(tag) for name, tag in raw.items()} if isinstance(raw, dict) else {}
