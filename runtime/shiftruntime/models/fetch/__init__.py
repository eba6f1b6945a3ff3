"""Models from elsewhere: a URI in, a path on this machine out. Free of torch.

Downloads resume, files of a kind that can hold code are never fetched, and what was fetched gets a manifest. What is
there whole is used without a wait, whoever fetches another version meanwhile.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from shiftruntime.errors import fetch_failed
from shiftruntime.models.fetch.hub import cached_hub, fetch_hub
from shiftruntime.models.fetch.lock import Report
from shiftruntime.models.fetch.s3 import cached_s3, fetch_s3
from shiftruntime.models.fetch.snapshots import Reader
from shiftruntime.models.fetch.storage import of_this_machine
from shiftruntime.models.fetch.uri import HubModel, LocalModel, parse_uri
from shiftruntime.models.manifest import Progress, Stopped

__all__ = ["DEFAULT_CACHE", "LocalModel", "Reader", "Stopped", "cached_model", "fetch_model", "parse_uri"]

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "shift" / "models"


def fetch_model(
    uri: str,
    cache: Path = DEFAULT_CACHE,
    progress: Progress = lambda done, total: None,
    stop: threading.Event | None = None,
    limit_bytes: int | None = None,
    checked: Progress = lambda done, total: None,
) -> Path:
    """The model's file or folder; fetched into ``cache`` unless it is there already.

    ``progress`` gets (bytes done, bytes in total), then ``checked`` the same of the sums; every call is a sign of life.
    Raises StartupError, also for a model of more than ``limit_bytes``; raises Stopped soon after ``stop`` is set.
    """
    model, stop = parse_uri(uri), stop or threading.Event()
    if isinstance(model, LocalModel):
        return model.path
    cache, size = cache.expanduser(), _Size(uri, limit_bytes, progress)
    report = Report(size.fetched, checked)
    try:
        if isinstance(model, HubModel):
            return fetch_hub(model, cache, report, stop)
        return fetch_s3(model, cache, report, stop)
    except OSError as error:
        raise of_this_machine(uri, cache, size.total, error) from error


def cached_model(uri: str, cache: Path = DEFAULT_CACHE) -> Path:
    """What ``fetch_model`` put into ``cache`` last; asks neither hub nor bucket, and waits for nobody.

    Raises StartupError.
    """
    model = parse_uri(uri)
    if isinstance(model, LocalModel):
        return model.path
    cache = cache.expanduser()
    try:
        return cached_hub(model, cache) if isinstance(model, HubModel) else cached_s3(model, cache)
    except OSError as error:
        raise of_this_machine(uri, cache, 0, error) from error


class _Size:
    """Refuses a model as soon as its size is known: a volume that overflows would cost the pod without a word."""

    def __init__(self, uri: str, limit_bytes: int | None, progress: Progress) -> None:
        self._uri, self._limit_bytes, self._progress = uri, limit_bytes, progress
        self.total = 0

    def fetched(self, done: int, total: int) -> None:
        self.total, limit = total, self._limit_bytes
        if limit is not None and total > limit:
            raise fetch_failed(f"{self._uri} has {total} bytes, and its cache may hold {limit}; raise that limit")
        self._progress(done, total)
