"""Models from elsewhere: a URI in, a path on this machine out. Free of torch.

Downloads resume, files of a kind that can hold code are never fetched, and what was fetched gets a manifest.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shiftruntime.errors import fetch_failed
from shiftruntime.models.fetch.hub import cached_hub, fetch_hub
from shiftruntime.models.fetch.s3 import cached_s3, fetch_s3
from shiftruntime.models.fetch.uri import HubModel, LocalModel, parse_uri
from shiftruntime.models.manifest import Progress, Stopped

__all__ = ["DEFAULT_CACHE", "LocalModel", "Stopped", "cached_model", "fetch_model", "parse_uri"]

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "shift" / "models"
_LOCK_SECONDS = 3600.0  # as long as another process may take to fetch the same model
_LOCK_POLL_SECONDS = 0.5


def fetch_model(
    uri: str,
    cache: Path = DEFAULT_CACHE,
    progress: Progress = lambda done, total: None,
    stop: threading.Event | None = None,
    limit_bytes: int | None = None,
) -> Path:
    """The model's file or folder; fetched into ``cache`` unless it is there already.

    ``progress`` gets (bytes done, bytes in total). Raises StartupError, also for a model of more than ``limit_bytes``;
    raises Stopped soon after ``stop`` is set.
    """
    model, stop = parse_uri(uri), stop or threading.Event()
    if isinstance(model, LocalModel):
        return model.path
    cache = cache.expanduser()
    if limit_bytes is not None:
        progress = _bounded(progress, uri, limit_bytes)
    try:
        with _lock(cache / f"{model.slug}.lock", stop):
            if isinstance(model, HubModel):
                return fetch_hub(model, cache, progress, stop)
            return fetch_s3(model, cache, progress, stop)
    except OSError as error:
        raise fetch_failed(f"{uri}: {error}") from error


def cached_model(uri: str, cache: Path = DEFAULT_CACHE, stop: threading.Event | None = None) -> Path:
    """What ``fetch_model`` put into ``cache`` last; asks neither hub nor bucket. Raises StartupError or Stopped."""
    model = parse_uri(uri)
    if isinstance(model, LocalModel):
        return model.path
    cache = cache.expanduser()
    try:
        # Another process may be putting a newer version of it into its place.
        with _lock(cache / f"{model.slug}.lock", stop or threading.Event()):
            return cached_hub(model, cache) if isinstance(model, HubModel) else cached_s3(model, cache)
    except OSError as error:
        raise fetch_failed(f"{uri}: {error}") from error


def _bounded(progress: Progress, uri: str, limit_bytes: int) -> Progress:
    """Refuses a model as soon as its size is known: a volume that overflows would cost the pod without a word."""

    def checked(done: int, total: int) -> None:
        if total > limit_bytes:
            raise fetch_failed(f"{uri} has {total} bytes, and its cache may hold {limit_bytes}; raise that limit")
        progress(done, total)

    return checked


@contextmanager
def _lock(path: Path, stop: threading.Event) -> Iterator[None]:
    """One process at a time for one model; the others then find it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _LOCK_SECONDS
    with path.open("w") as opened:
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise fetch_failed(f"{path} has been locked by another process for {_LOCK_SECONDS:g} s") from None
                if stop.wait(_LOCK_POLL_SECONDS):
                    raise Stopped from None
        yield
