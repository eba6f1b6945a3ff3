"""Which version of each file lies in a folder: kept beside the files, and true after a kill at any point."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from shiftruntime.models.fetch.selection import RemoteFile

_WHOLE, _PARTIAL = "whole", "partial"


class Tags:
    """The tag of a whole file and the tag of its first part are two facts: while a new version arrives, the earlier one
    still lies at the file's name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole: dict[str, str] = {}
        self._partial: dict[str, str] = {}
        try:
            raw = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return  # nothing is known, so everything is fetched again
        if isinstance(raw, dict):
            self._whole, self._partial = _tags(raw.get(_WHOLE)), _tags(raw.get(_PARTIAL))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all files that lie there, whole or in part."""
        return tuple(self._whole | self._partial)

    def is_whole(self, file: RemoteFile) -> bool:
        return bool(file.tag) and self._whole.get(file.name) == file.tag

    def is_begun(self, file: RemoteFile) -> bool:
        return bool(file.tag) and self._partial.get(file.name) == file.tag

    def begin(self, file: RemoteFile) -> None:
        """Before its first byte is written. What lies at its name is out of date, also if this version never comes."""
        self._whole.pop(file.name, None)
        self._partial[file.name] = file.tag
        self._save()

    def finish(self, file: RemoteFile) -> None:
        """After it was put into its place."""
        self._partial.pop(file.name, None)
        self._whole[file.name] = file.tag
        self._save()

    def forget(self, name: str) -> None:
        self._whole.pop(name, None)
        self._partial.pop(name, None)
        self._save()

    def _save(self) -> None:
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps({_WHOLE: self._whole, _PARTIAL: self._partial}))
        partial.replace(self._path)


def _tags(raw: object) -> dict[str, str]:
    return {str(name): str(tag) for name, tag in raw.items()} if isinstance(raw, Mapping) else {}
