"""From S3 and what speaks like it, through obstore: credentials and endpoint come from the usual AWS variables.

obstore is a small wrapper of the Rust object_store crate, without the weight and the threads of boto3.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError, NotFoundError, PreconditionError
from obstore.store import S3Store

from shiftruntime.errors import StartupError, fetch_failed, model_damaged
from shiftruntime.models.fetch.lock import Report, locked
from shiftruntime.models.fetch.s3_errors import first_line, refusal
from shiftruntime.models.fetch.selection import RemoteFile, Selection, index_to_read, select
from shiftruntime.models.fetch.snapshots import Snapshots, known_sums, partial_of, version_of
from shiftruntime.models.fetch.uri import S3Model
from shiftruntime.models.manifest import (
    Stopped,
    differing,
    make_manifest,
    manifest_path,
    narrow_manifest,
    read_manifest,
    save_manifest,
    verify,
)

if TYPE_CHECKING:  # obstore has these for type checkers only
    from obstore.store import ClientConfig, S3Config

log = logging.getLogger(__name__)

_AREA = ".snapshots"
_PIECE_BYTES = 8 << 20
_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_MAX_FILES = 10_000
_REQUEST_TIMEOUT = "60s"


def fetch_s3(model: S3Model, cache: Path, report: Report, stop: threading.Event) -> Path:
    """One folder per version of the bucket's objects, by their tags; one that is there is taken without any wait."""
    snapshots = _snapshots(model, cache)
    single, prefix = _place(model)
    try:
        bucket = _Bucket(model, _store(model.bucket, prefix), single)
        for _ in range(_ATTEMPTS):
            try:
                return _fetched(bucket, snapshots, report, stop)
            except _Changed as changed:
                said = changed
                log.warning("%s; listing the bucket again", changed)
        return _known(model, snapshots, str(said), said, report, stop)
    except (BaseError, FileNotFoundError, PermissionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine's files: obstore's have no number
        refused = refusal(model, error)
        if refused is not None:
            raise refused from error
        return _known(model, snapshots, first_line(error), error, report, stop)


def cached_s3(model: S3Model, cache: Path) -> Path:
    """What was fetched last; raises StartupError(FetchFailed) when there is none. Sums are not compared: every start
    does that."""
    snapshots = _snapshots(model, cache)
    path = snapshots.current()
    if path is None or read_manifest(path) is None:
        raise fetch_failed(f"{model} is not in {snapshots.area}, and the bucket is not to be asked; fetch it first")
    return path


class _Changed(Exception):
    """An object was replaced or removed after the bucket was listed."""


@dataclass(frozen=True)
class _Bucket:
    model: S3Model
    store: S3Store
    single: str | None  # the one GGUF file that is meant, if it is one


def _snapshots(model: S3Model, cache: Path) -> Snapshots:
    """Of each URI its own: prefixes may lie inside one another."""
    return Snapshots(cache / "s3" / model.bucket / (model.prefix + _AREA))


def _place(model: S3Model) -> tuple[str | None, str]:
    """The one GGUF file that is meant, if it is one, and the prefix of the folder."""
    if not model.prefix.endswith(".gguf"):
        return None, model.prefix
    prefix, _, single = model.prefix.rpartition("/")
    return single, prefix


def _fetched(bucket: _Bucket, snapshots: Snapshots, report: Report, stop: threading.Event) -> Path:
    chosen = _chosen(bucket)
    version, total = version_of(chosen.files), chosen.num_bytes
    report.fetched(0, total)
    path = snapshots.take(version, chosen)
    if path is not None:
        snapshots.tidy_soon()
    else:
        with locked(snapshots.lock, report, stop) as told:
            path = snapshots.take(version, chosen)  # another process may have fetched it meanwhile
            if path is None:
                folder = snapshots.begin(version, chosen)
                _download(bucket, folder, chosen, chosen.files, told, stop)
                _seal(bucket, folder, chosen, told, stop)
                path = snapshots.finish(version, chosen)
    report.fetched(total, total)
    return path


def _known(
    model: S3Model, snapshots: Snapshots, failure: str, error: Exception, report: Report, stop: threading.Event
) -> Path:
    """What was fetched last, if its sums are still right; raises StartupError(FetchFailed) otherwise."""
    path = snapshots.current()
    try:
        whole = path is not None and verify(path, progress=report.checked, stop=stop)
    except StartupError as damaged:
        raise fetch_failed(f"{model}: {failure}; and what is in the cache cannot be used: {damaged.message}") from error
    if path is None or not whole:
        raise fetch_failed(f"{model}: {failure}; start again, it resumes") from error
    log.warning(
        "%s: bucket %s cannot be asked for newer files (%s); using %s as it was fetched last, its sums are right",
        model, model.bucket, failure, path,
    )  # fmt: skip
    return path


def _store(bucket: str, prefix: str) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    client: ClientConfig = {"timeout": _REQUEST_TIMEOUT, "allow_http": bool(endpoint and endpoint[:5] == "http:")}
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    return S3Store(bucket, prefix=prefix or None, config=config, client_options=client)


def _chosen(bucket: _Bucket) -> Selection:
    found = _list(bucket)
    name = index_to_read(found, str(bucket.model), bucket.single)
    try:
        index = obstore.get(bucket.store, name).bytes().to_bytes() if name else None
    except (NotFoundError, FileNotFoundError) as error:
        raise _Changed(f"{bucket.model}: {name} went away while it was fetched") from error
    return select(found, str(bucket.model), bucket.single, index)


def _list(bucket: _Bucket) -> list[RemoteFile]:
    found: list[RemoteFile] = []
    for batch in obstore.list(bucket.store):
        found += [RemoteFile(file["path"], file["size"], file["e_tag"] or "") for file in batch]
        if len(found) > _MAX_FILES:
            raise fetch_failed(f"{bucket.model} has more than {_MAX_FILES} files; give the folder of one model")
    return found


def _download(
    bucket: _Bucket,
    folder: Path,
    chosen: Selection,
    files: tuple[RemoteFile, ...],
    report: Report,
    stop: threading.Event,
) -> None:
    """What is missing of some files; the others count as done."""
    total = chosen.num_bytes
    missing = [file for file in files if not (folder / file.name).exists()]
    done = total - sum(file.num_bytes for file in missing)
    report.fetched(done + sum(_size(partial_of(folder / file.name)) for file in missing), total)
    for file in missing:
        start = done

        def count(num_bytes: int, start: int = start) -> None:
            report.fetched(start + num_bytes, total)

        _file(bucket, file, folder / file.name, count, stop)
        done += file.num_bytes


def _file(bucket: _Bucket, file: RemoteFile, target: Path, count: Callable[[int], None], stop: threading.Event) -> None:
    """Tries again while each try brings something: a request's time is limited, that of a large file is not."""
    failures, came = 0, 0
    while True:
        if stop.is_set():
            raise Stopped
        try:
            _fetch(bucket, file, target, count, stop)
            return
        except (PreconditionError, NotFoundError, FileNotFoundError) as error:
            partial_of(target).unlink(missing_ok=True)
            raise _Changed(f"{bucket.model}: {file.name} was replaced while it was fetched") from error
        except BaseError as error:
            before, came = came, _size(partial_of(target))
            failures = 1 if came > before else failures + 1
            if failures == _ATTEMPTS or refusal(bucket.model, error) is not None:
                raise
            log.warning("%s: %s: %s; trying again", bucket.model, file.name, first_line(error))
            stop.wait(_PAUSE_SECONDS * failures)


def _fetch(
    bucket: _Bucket, file: RemoteFile, target: Path, count: Callable[[int], None], stop: threading.Event
) -> None:
    """One file, from where an earlier try stopped: its folder holds one version of each object only."""
    partial = partial_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not file.tag:
        partial.unlink(missing_ok=True)
    done = _size(partial)
    if done < file.num_bytes or not file.num_bytes:
        options: Any = {"if_match": file.tag} if file.tag else {}
        if done:
            options["range"] = {"offset": done}
        with partial.open("ab" if done else "wb") as opened:
            if file.num_bytes:
                for piece in obstore.get(bucket.store, file.name, options=options).stream(min_chunk_size=_PIECE_BYTES):
                    if stop.is_set():
                        raise Stopped
                    opened.write(piece)
                    done += len(piece)
                    count(done)
    if done != file.num_bytes:
        partial.unlink()
        raise model_damaged(f"{target}: {done} bytes came, the bucket says {file.num_bytes}; start again")
    partial.replace(target)


def _seal(bucket: _Bucket, folder: Path, chosen: Selection, report: Report, stop: threading.Event) -> None:
    """Hold what came against the sums that the bucket has, or take them; what does not agree is fetched again."""
    path = folder / chosen.single if chosen.single else folder
    manifest = next((file.name for file in chosen.files if folder / file.name == manifest_path(path)), None)
    if manifest is None:
        _take_sums(bucket, folder, path, chosen, report, stop)
        return
    # It lists what lay beside the model when it was written, also what is not fetched.
    narrow_manifest(path, chosen.lists)
    wrong = differing(path, report.checked, stop)
    for _ in range(_ATTEMPTS - 1):
        again = tuple(file for file in chosen.files if folder / file.name in {one.file for one in wrong})
        if not again:
            break
        _download_again(bucket, folder, chosen, again, report, stop)
        wrong = differing(path, report.checked, stop)
    for one in wrong:
        # What was damaged on its way must not lie there at the next start.
        one.file.unlink(missing_ok=True)
    if wrong:
        (folder / manifest).unlink()
        raise model_damaged(
            f"{bucket.model}: {wrong[0].file.name} has SHA-256 {wrong[0].found}, and {manifest} of the bucket says "
            f"{wrong[0].expected}, after {_ATTEMPTS} downloads; upload the file again, or correct its sum"
        )


def _take_sums(
    bucket: _Bucket, folder: Path, path: Path, chosen: Selection, report: Report, stop: threading.Event
) -> None:
    """Write down the sums of what came. What was whole before is what it was then, or is fetched."""
    manifest, known = make_manifest(path, report.checked, stop), known_sums(folder, chosen.single)
    taken = {manifest.file(name): digest for name, digest in manifest.files}
    again = tuple(f for f in chosen.files if f.name in known and known[f.name] != taken[folder / f.name])
    if again:
        _download_again(bucket, folder, chosen, again, report, stop)
        manifest = make_manifest(path, report.checked, stop)
    save_manifest(manifest)


def _download_again(
    bucket: _Bucket,
    folder: Path,
    chosen: Selection,
    wrong: tuple[RemoteFile, ...],
    report: Report,
    stop: threading.Event,
) -> None:
    for file in wrong:
        log.warning("%s: %s is not what its sum says; fetching it again", bucket.model, file.name)
        (folder / file.name).unlink()
    _download(bucket, folder, chosen, wrong, report, stop)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
