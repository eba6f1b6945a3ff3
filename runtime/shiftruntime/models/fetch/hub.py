"""From Hugging Face's hub through its own library, which resumes, follows redirects and finds the user's token."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, hf_hub_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from tqdm import tqdm

from shiftruntime.errors import fetch_failed, model_damaged, model_not_found
from shiftruntime.models.fetch.selection import RemoteFile, Selection, index_to_read, is_manifest, select
from shiftruntime.models.fetch.uri import HubModel
from shiftruntime.models.manifest import Progress, Stopped, make_manifest, manifest_path, read_manifest, save_manifest

log = logging.getLogger(__name__)

_LIST_SECONDS = 30.0
_ATTEMPTS = 3
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What the hub's HTTP client raises, and what its downloader makes of it.
_UNREACHABLE: tuple[type[Exception], ...] = (hub_errors.HTTPError, OSError)  # type: ignore[attr-defined]


def fetch_hub(model: HubModel, cache: Path, progress: Progress, stop: threading.Event) -> Path:
    """One folder per commit: a revision that moves never mixes two of them."""
    root = cache / model.slug
    pointer = _pointer(model, root)
    try:
        info = _info(model)
    except _UNREACHABLE as error:
        return _known(model, root, pointer, error)
    commit = _commit(model, info)
    # Sums that a repository holds say nothing that the hub does not, and come in many forms.
    remote = [_remote(file) for file in info.siblings or () if not is_manifest(file.rfilename)]
    index = _index(model, commit, root / commit, remote, stop)
    path = _download(model, commit, root / commit, select(remote, str(model), model.file, index), progress, stop)
    _point(pointer, commit)
    return path


def cached_hub(model: HubModel, cache: Path) -> Path:
    """What this revision was last; raises StartupError(FetchFailed) when it was not fetched whole."""
    root = cache / model.slug
    path = _last(model, root, _pointer(model, root))
    if path is None or read_manifest(path) is None:
        raise fetch_failed(f"{model} is not in {root}, and the hub is not to be asked; fetch it first")
    return path


def _pointer(model: HubModel, root: Path) -> Path:
    """The file that says which commit a revision was last."""
    return root / f"{model.revision.replace('/', '--')}.commit"


def _point(pointer: Path, commit: str) -> None:
    """Whole or not at all: others may read it while it is written."""
    partial = pointer.with_name(pointer.name + ".partial")
    partial.write_text(f"{commit}\n")
    partial.replace(pointer)


def _last(model: HubModel, root: Path, pointer: Path) -> Path | None:
    try:
        folder = root / pointer.read_text().strip()
    except FileNotFoundError:
        return None
    return _model_path(folder, model.file or _only_gguf(folder))


def _said(error: Exception) -> str:
    """Without what follows a file's name in its address: that may be a signature which opens it."""
    return _QUERY.sub(r"\1?…", str(error))


def _info(model: HubModel) -> ModelInfo:
    """Raises StartupError for what is not there or not allowed, one of _UNREACHABLE when the hub cannot be reached."""
    try:
        return HfApi().model_info(model.repo, revision=model.revision, timeout=_LIST_SECONDS, files_metadata=True)
    except GatedRepoError as error:
        raise model_not_found(
            f"{model} is gated: accept its terms on the hub and give the token of that account in HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise model_not_found(f"{model.repo} has no revision {model.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise model_not_found(
            f"{model} does not exist, or is private: then give a token that may read it in HF_TOKEN"
        ) from error


def _commit(model: HubModel, info: ModelInfo) -> str:
    """It becomes the name of a folder."""
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise fetch_failed(f"{model}: the hub names {commit[:80]!r} as its commit, which is no SHA-1 or SHA-256")
    return commit


def _known(model: HubModel, root: Path, pointer: Path, error: Exception) -> Path:
    """What this revision was last; raises StartupError(FetchFailed) when it was never fetched."""
    path = _last(model, root, pointer)
    if path is None:
        raise fetch_failed(
            f"{model}: the hub cannot be reached and the model is not in {root}: {_said(error)}"
        ) from error
    if read_manifest(path) is None:
        raise fetch_failed(f"{model}: the hub cannot be reached and {path} is not complete: {_said(error)}") from error
    log.warning("%s: the hub cannot be reached (%s); using %s as it was fetched last", model, _said(error), path)
    return path


def _remote(sibling: Any) -> RemoteFile:
    return RemoteFile(
        sibling.rfilename, sibling.size or 0, sibling.blob_id or "", sibling.lfs.sha256 if sibling.lfs else None
    )


def _index(model: HubModel, commit: str, folder: Path, files: list[RemoteFile], stop: threading.Event) -> bytes | None:
    """What says which weights to fetch; asks nothing of the hub if it is there already."""
    name = index_to_read(files, str(model), model.file)
    if name is None:
        return None
    _file(model, commit, folder, name, _counter(0, lambda done, total: None, stop), stop)
    return (folder / name).read_bytes()


def _download(
    model: HubModel, commit: str, folder: Path, chosen: Selection, progress: Progress, stop: threading.Event
) -> Path:
    path, total = _model_path(folder, chosen.single), chosen.num_bytes
    if manifest_path(path).exists():  # written last
        progress(total, total)
        return path
    progress(0, total)
    counter = _counter(total, progress, stop)
    for file in chosen.files:
        _file(model, commit, folder, file.name, counter, stop)
    _seal(path, folder, chosen.files)
    progress(total, total)
    return path


def _file(
    model: HubModel, commit: str, folder: Path, name: str, counter: type[tqdm[Any]], stop: threading.Event
) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        if stop.is_set():
            raise Stopped
        try:
            hf_hub_download(model.repo, name, revision=commit, local_dir=folder, tqdm_class=counter)
            break
        except _UNREACHABLE as error:
            if attempt == _ATTEMPTS:
                raise fetch_failed(f"{model}: {name}: {_said(error)}; start again, it resumes") from error
            log.warning("%s: %s: %s; trying again", model, name, _said(error))


def _seal(path: Path, folder: Path, files: tuple[RemoteFile, ...]) -> None:
    """Write the manifest, once its sums are those that the hub knows: what has one is taken for whole."""
    manifest = make_manifest(path)
    found = {manifest.file(name): digest for name, digest in manifest.files}
    for file in files:
        digest = found.get(folder / file.name)
        if file.sha256 and digest not in (None, file.sha256):
            raise model_damaged(
                f"{folder / file.name} has SHA-256 {digest}, the hub says {file.sha256}; remove the file, start again"
            )
    save_manifest(manifest)


def _model_path(folder: Path, single: str | None) -> Path:
    return folder / single if single else folder


def _only_gguf(folder: Path) -> str | None:
    """The file that was fetched of a repository that has one GGUF file and no safetensors."""
    if manifest_path(folder).exists():
        return None
    fetched = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf") if manifest_path(file).exists()]
    return fetched[0] if len(fetched) == 1 else None


def _counter(total: int, progress: Progress, stop: threading.Event) -> type[tqdm[Any]]:
    """A progress bar that draws nothing: it counts bytes, and ends the download when it should stop."""
    done = 0

    class Counter(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            if stop.is_set():
                raise Stopped
            done = min(total, done + int(n or 0))
            progress(done, total)
            return None

    return Counter
