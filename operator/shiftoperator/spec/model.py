"""`spec.model`: what is served, and where it comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shiftoperator.errors import InvalidSpecError

_CLAIM_URI = re.compile(r"pvc://([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)/(\S*)")
_FILE_URI = re.compile(r"file:///\S+")
_HUB_URI = re.compile(r"(hf://[\w.-]+/[\w.-]+)(/[^@\s]+\.gguf)?", re.ASCII)
_BUCKET_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/[^/\s]\S*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
QUANTIZATIONS = ("auto", "none", "fp8", "int8", "gguf")
_FORMS = "hf://OWNER/NAME (its revision in model.revision), s3://BUCKET/PREFIX, pvc://CLAIM/PATH or file:///PATH"


@dataclass(frozen=True)
class Model:
    uri: str
    served_name: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    # Name of the Secret with what opens the hub or bucket.
    secret: str | None = None
    # How the weights must be stored; None takes them as they are.
    quantization: str | None = None

    @property
    def claim(self) -> str | None:
        """The PersistentVolumeClaim that holds the model, if the URI names one."""
        match = _CLAIM_URI.fullmatch(self.uri)
        return match[1] if match else None

    @property
    def fetched(self) -> bool:
        """Whether it lies elsewhere, and a step of its own brings it into the pod's cache."""
        return self.uri.startswith(("hf://", "s3://"))

    def location(self, claim_mount: str) -> str:
        """What the runtime is told inside its container: a path, or a URI of what is fetched."""
        if match := _CLAIM_URI.fullmatch(self.uri):
            return f"{claim_mount}/{match[2]}".rstrip("/")
        match = _HUB_URI.fullmatch(self.uri)
        if match and self.revision:
            return f"{match[1]}@{self.revision}{match[2] or ''}"
        return self.uri.removeprefix("file://")


def model(asked: dict[str, Any]) -> Model:
    uri, revision = asked.get("uri", ""), asked.get("revision")
    if not any(form.fullmatch(uri) for form in (_CLAIM_URI, _FILE_URI, _HUB_URI, _BUCKET_URI)):
        raise InvalidSpecError(f"model.uri {uri!r} cannot be read; write {_FORMS}")
    if ".." in uri.split("/"):
        raise InvalidSpecError(f"model.uri {uri!r} leaves its volume; remove the '..'")
    quantization = asked.get("quantization")
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise InvalidSpecError(f"model.quantization {quantization!r} is unknown; use {', '.join(QUANTIZATIONS)}")
    found = Model(uri, asked.get("servedName"), asked.get("dtype", "auto"), revision, _secret(asked), quantization)
    if revision is not None and not uri.startswith("hf://"):
        raise InvalidSpecError(f"model.revision {revision!r} is of hf:// alone; remove it, or put it into the path")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision.split("/")):
        raise InvalidSpecError(f"model.revision {revision!r} is no branch, tag or commit")
    if found.secret is not None and not found.fetched:
        raise InvalidSpecError(f"model.secretRef opens hf:// and s3://, and model.uri is {uri!r}; remove it")
    return found


def _secret(asked: dict[str, Any]) -> str | None:
    name = asked.get("secretRef", {}).get("name")
    return None if name is None else str(name)
