"""`spec.model`: what is served."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shiftoperator.errors import InvalidSpecError

_CLAIM_URI = re.compile(r"pvc://([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)/(\S*)")


@dataclass(frozen=True)
class Model:
    uri: str
    served_name: str | None = None
    dtype: str = "auto"

    @property
    def claim(self) -> str | None:
        """The PersistentVolumeClaim that holds the model, if the URI names one."""
        match = _CLAIM_URI.fullmatch(self.uri)
        return match[1] if match else None

    def path(self, claim_mount: str) -> str:
        """Where the runtime finds the model inside its container."""
        match = _CLAIM_URI.fullmatch(self.uri)
        if match:
            return f"{claim_mount}/{match[2]}".rstrip("/")
        return self.uri.removeprefix("file://")


def model(model: dict[str, Any]) -> Model:
    uri = model.get("uri", "")
    if not _CLAIM_URI.fullmatch(uri) and not re.fullmatch(r"file:///\S+", uri):
        raise InvalidSpecError(f"model.uri {uri!r} cannot be read; write pvc://CLAIM/PATH or file:///PATH")
    if ".." in uri.split("/"):
        raise InvalidSpecError(f"model.uri {uri!r} leaves its volume; remove the '..'")
    return Model(uri, model.get("servedName"), model.get("dtype", "auto"))
