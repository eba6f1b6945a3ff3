"""From S3 and what speaks like it, through obstore: credentials and endpoint come from the usual AWS variables.

obstore is a small wrapper of the Rust object_store crate, without the weight and the threads of boto3.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from shiftruntime.errors import StartupError, fetch_failed, model_damaged, model_not_found
from shiftruntime.models.fetch.selection import RemoteFile, Selection, belongs_to_folder, index_to_read, select
from shiftruntime.models.fetch.tags import Tags
from shiftruntime.models.fetch.uri import S3Model
from shiftruntime.models.manifest import (
    Progress,
    Stopped,
    manifest_path,
    narrow_manifest,
    read_manifest,
    verify,
    write_manifest,
)

if TYPE_CHECKING:  # obstore has these for type checkers only
    from obstore.store import ClientConfig, S3Config

log = logging.getLogger(__name__)

_TAGS = ".fetched.json"  # of a folder; of a file with its name before it
_POINTER = ".model"  # of a folder: the only GGUF file that it was when it was fetched, or nothing
_PIECE_BYTES = 8 << 20
_ATTEMPTS = 3
_MAX_FILES = 10_000
_REQUEST_TIMEOUT = "60s"


def fetch_s3(model: S3Model, cache: Path, progress: Progress, stop: threading.Event) -> Path:
    """A folder that follows the bucket: files whose tag changed are fetched anew, and their manifest with them."""
    single, prefix = _place(model)
    folder = cache / "s3" / model.bucket / prefix
    folder.mkdir(parents=True, exist_ok=True)
    try:
        store = _store(model.bucket, prefix)
        found = _list(store, model)
        name = index_to_read(found, str(model), single)
        index = obstore.get(store, name).bytes().to_bytes() if name else None
        chosen = select(found, str(model), single, index)
        path = folder / chosen.single if chosen.single else folder
        _download(store, folder, chosen, path, progress, stop)
        if single is None:
            (folder / _POINTER).write_text(chosen.single or "")
        return path
    except (NotFoundError, FileNotFoundError) as error:
        raise model_not_found(f"{model}: {_first_line(error)}") from error
    except (PermissionDeniedError, PermissionError, UnauthenticatedError) as error:
        raise model_not_found(
            f"{model} may not be read with the credentials of this process (AWS_ACCESS_KEY_ID, a role, …): "
            f"{_first_line(error)}"
        ) from error
    except BaseError as error:
        if "NoSuchBucket" in str(error):
            raise model_not_found(f"{model}: there is no bucket {model.bucket}") from error
        return _known(model, folder, single, error, stop)


def cached_s3(model: S3Model, cache: Path) -> Path:
    """What was fetched last; raises StartupError(FetchFailed) when it was not fetched whole. Sums are not compared:
    every start does that."""
    single, prefix = _place(model)
    folder = cache / "s3" / model.bucket / prefix
    try:
        path = _last(folder, single)
    except FileNotFoundError:
        path = None
    if path is None or read_manifest(path) is None:
        raise fetch_failed(f"{model} is not in {folder}, and the bucket is not to be asked; fetch it first")
    return path


def _place(model: S3Model) -> tuple[str | None, str]:
    """The one GGUF file that is meant, if it is one, and the prefix of the folder."""
    if not model.prefix.endswith(".gguf"):
        return None, model.prefix
    prefix, _, single = model.prefix.rpartition("/")
    return single, prefix


def _last(folder: Path, single: str | None) -> Path:
    """Of this URI alone: a file that lies there may have been fetched under another one. Raises FileNotFoundError."""
    name = single or (folder / _POINTER).read_text()
    return folder / name if name else folder


def _known(model: S3Model, folder: Path, single: str | None, error: Exception, stop: threading.Event) -> Path:
    """What was fetched last, if its sums are still right; raises StartupError(FetchFailed) otherwise."""
    failure = f"{model}: {_first_line(error)}"
    try:
        path = _last(folder, single)
        whole = verify(path, stop=stop)
    except FileNotFoundError:
        whole = False
    except StartupError as damaged:
        raise fetch_failed(f"{failure}; and what is in the cache cannot be used: {damaged.message}") from error
    if not whole:
        raise fetch_failed(f"{failure}; start again, it resumes") from error
    log.warning(
        "%s: bucket %s cannot be asked for newer files (%s); using %s as it was fetched last, its sums are right",
        model, model.bucket, _first_line(error), path,
    )  # fmt: skip
    return path


def _store(bucket: str, prefix: str) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    client: ClientConfig = {"timeout": _REQUEST_TIMEOUT, "allow_http": bool(endpoint and endpoint[:5] == "http:")}
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    return S3Store(bucket, prefix=prefix or None, config=config, client_options=client)


def _list(store: S3Store, model: S3Model) -> list[RemoteFile]:
    found: list[RemoteFile] = []
    for batch in obstore.list(store):
        found += [RemoteFile(file["path"], file["size"], file["e_tag"] or "") for file in batch]
        if len(found) > _MAX_FILES:
            raise fetch_failed(f"{model} has more than {_MAX_FILES} files; give the folder of one model")
    return found


def _download(
    store: S3Store, folder: Path, chosen: Selection, path: Path, progress: Progress, stop: threading.Event
) -> None:
    tags = Tags(_tags_path(folder, path))
    files, total = chosen.files, chosen.num_bytes
    manifest = manifest_path(path)
    gone = _gone(files, tags) if path == folder else ()
    if gone or _changed(folder, files, tags):
        manifest.unlink(missing_ok=True)  # before anything else: it says that the folder is whole
    for name in gone:
        (folder / name).unlink(missing_ok=True)
        _partial(folder / name).unlink(missing_ok=True)
        tags.forget(name)
    changed = _changed(folder, files, tags)  # with the manifest, where the bucket has one
    done = total - sum(file.num_bytes for file in changed)
    progress(0, total)
    for file in changed:
        start = done

        def count(num_bytes: int, start: int = start) -> None:
            progress(start + num_bytes, total)

        for attempt in range(1, _ATTEMPTS + 1):
            if stop.is_set():
                raise Stopped
            try:
                _fetch(store, file, folder / file.name, tags, count, stop)
                break
            except PreconditionError:  # it was replaced while it was fetched
                raise
            except BaseError:
                if attempt == _ATTEMPTS:
                    raise
        done += file.num_bytes
    if not manifest.exists():
        write_manifest(path)
    else:  # the bucket's lists what lay beside the model when it was written, also what is not fetched
        narrow_manifest(path, chosen.lists)
    progress(total, total)


def _tags_path(folder: Path, path: Path) -> Path:
    """Of each model its own: two processes that fetch two files of one prefix must not overwrite the other's."""
    return folder / _TAGS if path == folder else path.with_name(f".{path.name}{_TAGS}")


def _changed(folder: Path, files: tuple[RemoteFile, ...], tags: Tags) -> list[RemoteFile]:
    return [file for file in files if not tags.is_whole(file) or not (folder / file.name).exists()]


def _gone(files: tuple[RemoteFile, ...], tags: Tags) -> tuple[str, ...]:
    """What the bucket no longer has: an index of earlier weights would be read."""
    names = {file.name for file in files}
    return tuple(name for name in tags.names if belongs_to_folder(name) and name not in names)


def _fetch(
    store: S3Store, file: RemoteFile, target: Path, tags: Tags, count: Callable[[int], None], stop: threading.Event
) -> None:
    """One file, from where an earlier try stopped if the object is still the same."""
    partial = _partial(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not tags.is_begun(file):
        partial.unlink(missing_ok=True)  # of another version; gone before its tag is
    tags.begin(file)
    done = partial.stat().st_size if partial.exists() else 0
    if done < file.num_bytes or not file.num_bytes:
        options: Any = {"if_match": file.tag} if file.tag else {}
        if done:
            options["range"] = {"offset": done}
        with partial.open("ab" if done else "wb") as opened:
            if file.num_bytes:
                for piece in obstore.get(store, file.name, options=options).stream(min_chunk_size=_PIECE_BYTES):
                    if stop.is_set():
                        raise Stopped
                    opened.write(piece)
                    done += len(piece)
                    count(done)
    if done != file.num_bytes:
        partial.unlink()
        raise model_damaged(f"{target}: {done} bytes came, the bucket says {file.num_bytes}; start again")
    partial.replace(target)
    tags.finish(file)


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _first_line(error: Exception) -> str:
    """The rest is the source's debugging text."""
    return str(error).split("\n", 1)[0]
