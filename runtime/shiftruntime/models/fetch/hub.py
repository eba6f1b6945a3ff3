"""From Hugging Face's hub through its own library, which resumes, follows redirects and finds the user's token."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import HfApi, ModelInfo, get_token, hf_hub_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from shiftruntime.errors import StartupError, fetch_failed, model_damaged, model_not_found
from shiftruntime.models.fetch.lock import Report, locked
from shiftruntime.models.fetch.selection import RemoteFile, Selection, index_to_read, is_manifest, select
from shiftruntime.models.fetch.storage import OF_THIS_MACHINE, write_whole
from shiftruntime.models.fetch.uri import HubModel
from shiftruntime.models.manifest import Progress, Stopped, make_manifest, manifest_path, read_manifest, save_manifest

log = logging.getLogger(__name__)

_LIST_SECONDS = 30.0
_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What the hub's HTTP client raises, and what its downloader makes of it.
_UNREACHABLE: tuple[type[Exception], ...] = (hub_errors.HTTPError, OSError)  # type: ignore[attr-defined]


def fetch_hub(model: HubModel, cache: Path, report: Report, stop: threading.Event) -> Path:
    """One folder per commit: a revision that moves never mixes two of them, and one that is there is taken at once."""
    root = cache / model.slug
    pointer = _pointer(model, root)
    if _COMMIT.fullmatch(model.revision):  # cannot have moved: nobody is asked
        path = _last(root, pointer)
        if path is not None and manifest_path(path).exists():
            return path
    try:
        info = _info(model)
    except _UNREACHABLE as error:
        return _known(model, root, pointer, error)
    commit = _commit(model, info)
    # Sums that a repository holds say nothing that the hub does not, and come in many forms.
    remote = [_remote(file) for file in info.siblings or () if not is_manifest(file.rfilename)]
    chosen = _there(model, root / commit, remote)
    if chosen is None:
        with locked(root / f"{commit}.lock", report, stop) as told:
            chosen = _there(model, root / commit, remote)  # another process may have fetched it meanwhile
            if chosen is None:
                chosen = _download(_Commit(model, commit, root / commit), remote, told, stop)
    report.fetched(chosen.num_bytes, chosen.num_bytes)
    _point(pointer, commit, chosen.single)
    return _model_path(root / commit, chosen.single)


def cached_hub(model: HubModel, cache: Path) -> Path:
    """What this revision was last; raises StartupError(FetchFailed) when it was not fetched whole."""
    root = cache / model.slug
    path = _last(root, _pointer(model, root))
    if path is None or read_manifest(path) is None:
        raise fetch_failed(f"{model} is not in {root}, and the hub is not to be asked; fetch it first")
    return path


@dataclass(frozen=True)
class _Commit:
    model: HubModel
    commit: str
    folder: Path


def _there(model: HubModel, folder: Path, remote: list[RemoteFile]) -> Selection | None:
    """What was chosen of a commit, if all of it is there: its manifest is written last."""
    name = index_to_read(remote, str(model), model.file)
    if name is not None and not (folder / name).is_file():
        return None
    index = (folder / name).read_bytes() if name is not None else None
    chosen = select(remote, str(model), model.file, index)
    return chosen if manifest_path(_model_path(folder, chosen.single)).exists() else None


def _pointer(model: HubModel, root: Path) -> Path:
    """The file that says which commit a revision was last, and whether that is a single file."""
    file = "" if model.file is None else "+" + quote(model.file, safe="")
    return root / f"{quote(model.revision, safe='')}{file}.commit"


def _point(pointer: Path, commit: str, single: str | None) -> None:
    write_whole(pointer, f"{commit}\n{single or ''}\n")


def _last(root: Path, pointer: Path) -> Path | None:
    try:
        commit, *rest = pointer.read_text().split("\n")
    except FileNotFoundError:
        return None
    return _model_path(root / commit, rest[0] if rest else None)


def _said(error: Exception) -> str:
    """Without what follows a file's name in its address: that may be a signature which opens it."""
    said = _QUERY.sub(r"\1?…", str(error))
    if "CERTIFICATE_VERIFY_FAILED" in said:
        said += "; check the node's clock, and name an authority of your own in SSL_CERT_FILE"
    return said


def _info(model: HubModel) -> ModelInfo:
    """Raises StartupError for what is not there or not allowed, one of _UNREACHABLE when the hub cannot be reached."""
    try:
        return HfApi().model_info(model.repo, revision=model.revision, timeout=_LIST_SECONDS, files_metadata=True)
    except HfHubHTTPError as error:
        refused = _refusal(model, error)
        if refused is None:
            raise
        raise refused from error


def _refusal(model: HubModel, error: Exception) -> StartupError | None:
    """None for what may pass by itself."""
    if not isinstance(error, HfHubHTTPError):
        return None
    status = error.response.status_code if error.response is not None else 0
    if isinstance(error, GatedRepoError):
        return model_not_found(
            f"{model} is gated: accept its terms on the hub and give the token of that account in HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return model_not_found(
            f"{model.repo} has no revision {model.revision!r}; name one of its branches, tags or commits"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return model_not_found(f"{model}: {_said(error)}")
    if isinstance(error, RepositoryNotFoundError):
        return model_not_found(f"{model} does not exist, or is private: then give a token that may read it in HF_TOKEN")
    if status in (401, 403):
        has = "the token in HF_TOKEN" if get_token() else "a reader without HF_TOKEN"
        return model_not_found(
            f"{model}: the hub refuses {has} ({status}); give a valid token that may read this model"
        )
    return None


def _commit(model: HubModel, info: ModelInfo) -> str:
    """It becomes the name of a folder."""
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise fetch_failed(f"{model}: the hub names {commit[:80]!r} as its commit, which is no SHA-1 or SHA-256")
    return commit


def _known(model: HubModel, root: Path, pointer: Path, error: Exception) -> Path:
    """What this revision was last; raises StartupError(FetchFailed) when it was never fetched."""
    path = _last(root, pointer)
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


def _download(commit: _Commit, remote: list[RemoteFile], report: Report, stop: threading.Event) -> Selection:
    """Under the lock of the commit, so that what an ended process left in part is nobody's."""
    for left in commit.folder.glob(".cache/huggingface/download/**/*.incomplete"):
        left.unlink(missing_ok=True)
    name = index_to_read(remote, str(commit.model), commit.model.file)
    if name is not None:
        _file(commit, name, _Counter(0, lambda done, total: None, stop))
    index = (commit.folder / name).read_bytes() if name is not None else None
    chosen = select(remote, str(commit.model), commit.model.file, index)
    report.fetched(0, chosen.num_bytes)
    counter = _Counter(chosen.num_bytes, report.fetched, stop)
    for file in chosen.files:
        if (commit.folder / file.name).exists():  # of an earlier try: nothing will come of it
            counter.add(file.num_bytes)
        _file(commit, file.name, counter)
    _seal(commit, chosen, report, stop)
    return chosen


def _file(commit: _Commit, name: str, counter: _Counter) -> None:
    """Tries again for as long as each try brings something."""
    model, failures = commit.model, 0
    while True:
        counter.check()
        came = counter.done
        try:
            hf_hub_download(model.repo, name, revision=commit.commit, local_dir=commit.folder, tqdm_class=counter.bar)
            return
        except _UNREACHABLE as error:
            if isinstance(error, OSError) and error.errno in OF_THIS_MACHINE:
                raise
            refused = _refusal(model, error)
            if refused is not None:
                raise refused from error
            failures = 1 if counter.done > came else failures + 1
            if failures == _ATTEMPTS:
                raise fetch_failed(f"{model}: {name}: {_said(error)}; start again, it resumes") from error
            log.warning("%s: %s: %s; trying again", model, name, _said(error))
            counter.stop.wait(_PAUSE_SECONDS * failures)


def _seal(commit: _Commit, chosen: Selection, report: Report, stop: threading.Event) -> None:
    """Write the manifest, once its sums are those that the hub knows: what has one is taken for whole."""
    path = _model_path(commit.folder, chosen.single)
    for attempt in range(1, _ATTEMPTS + 1):
        manifest = make_manifest(path, report.checked, stop)
        found = {manifest.file(name): digest for name, digest in manifest.files}
        wrong = [file for file in chosen.files if _differs(file, found.get(commit.folder / file.name))]
        if not wrong:
            save_manifest(manifest)
            return
        for file in wrong:  # also at the last try: it must not lie there at the next start
            (commit.folder / file.name).unlink()
        if attempt < _ATTEMPTS:
            counter = _Counter(sum(file.num_bytes for file in wrong), report.fetched, stop)
            for file in wrong:
                log.warning("%s: %s is not what the hub says; fetching it again", commit.model, file.name)
                _file(commit, file.name, counter)
    name = wrong[0].name
    raise model_damaged(
        f"{commit.model}: {name} has SHA-256 {found[commit.folder / name]} after {_ATTEMPTS} downloads, the hub says "
        f"{wrong[0].sha256}; look for a proxy that changes it, then start again"
    )


def _differs(file: RemoteFile, digest: str | None) -> bool:
    return file.sha256 is not None and digest not in (None, file.sha256)


def _model_path(folder: Path, single: str | None) -> Path:
    return folder / single if single else folder


class _Counter:
    """Counts bytes, and ends the download when it should stop."""

    def __init__(self, total: int, progress: Progress, stop: threading.Event) -> None:
        self.done, self.stop = 0, stop
        self._total, self._progress = total, progress

    def check(self) -> None:
        """Raises Stopped."""
        if self.stop.is_set():
            raise Stopped

    def add(self, num_bytes: int) -> None:
        """Raises Stopped."""
        self.check()
        self.done = min(self._total, self.done + num_bytes)
        self._progress(self.done, self._total)

    @property
    def bar(self) -> type[tqdm[Any]]:
        """A progress bar that draws nothing."""
        add = self.add

        class Bar(tqdm):  # type: ignore[type-arg]
            def __init__(self, *args: Any, **options: Any) -> None:
                options.pop("name", None)
                super().__init__(*args, **options | {"disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                add(int(n or 0))
                return None

        return Bar
