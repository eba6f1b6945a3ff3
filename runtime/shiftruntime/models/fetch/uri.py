"""Where a model is: a path, or a URI with one of four schemes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from shiftruntime.errors import invalid_argument

EXAMPLES = (
    "/models/llama, file:///models/llama, hf://OWNER/NAME, hf://OWNER/NAME@REVISION, hf://OWNER/NAME/FILE.gguf, "
    "s3://BUCKET/PREFIX"
)
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+?))?(/(?P<file>[^@]+\.gguf))?", re.ASCII)


@dataclass(frozen=True)
class LocalModel:
    path: Path


@dataclass(frozen=True)
class HubModel:
    """On Hugging Face's hub, or what HF_ENDPOINT names."""

    repo: str  # OWNER/NAME
    revision: str = "main"
    file: str | None = None  # one GGUF file of it

    @property
    def slug(self) -> str:
        return f"hf/{self.repo.replace('/', '--')}"

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class S3Model:
    bucket: str
    prefix: str  # of a folder, or the key of one .gguf file

    @property
    def slug(self) -> str:
        return f"s3/{self.bucket}/{self.prefix}"

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def parse_uri(uri: str) -> LocalModel | HubModel | S3Model:
    """Raises StartupError(InvalidArgument) that shows what a URI looks like."""
    scheme, found, rest = uri.partition("://")
    if not found:
        return LocalModel(Path(uri))
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise invalid_argument(f"model {uri!r}: a file URI has three slashes and an absolute path, file:///PATH")
        return LocalModel(Path(unquote(parts.path)))
    if scheme == "hf":
        match = _HUB.fullmatch(rest)
        if match is None:
            raise invalid_argument(f"model {uri!r} is no hf://OWNER/NAME[@REVISION][/FILE.gguf]")
        return HubModel(match["repo"], match["revision"] or "main", _relative(uri, match["file"]))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]+", bucket) or not prefix:
            raise invalid_argument(f"model {uri!r} is no s3://BUCKET/PREFIX")
        _relative(uri, prefix)
        return S3Model(bucket, prefix)
    if scheme == "pvc":
        raise invalid_argument(
            f"model {uri!r}: a claim is mounted by Kubernetes; in a ShiftDeployment the operator turns pvc:// into a "
            "path, here give the path itself"
        )
    raise invalid_argument(f"model {uri!r}: unknown scheme {scheme!r}; for example: {EXAMPLES}")


def short_name(uri: str) -> str:
    """What people call a model: its file, folder or repository. Raises StartupError(InvalidArgument)."""
    model = parse_uri(uri)
    match model:
        case LocalModel():
            name = model.path.name or model.path.resolve().name
        case HubModel():
            name = (model.file or model.repo).rpartition("/")[2]
        case S3Model():
            name = model.prefix.rpartition("/")[2]
    return name.removesuffix(".gguf")


def _relative(uri: str, name: str | None) -> str | None:
    """A name that stays below the folder it is put into."""
    if name is not None and (".." in PurePosixPath(name).parts or name.startswith("/")):
        raise invalid_argument(f"model {uri!r}: {name!r} leaves its folder")
    return name
