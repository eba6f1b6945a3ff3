"""One change to the cluster or its images at a time, across processes."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from localcluster.errors import ClusterError
from localcluster.settings import Settings

LOCK_SECONDS = 30 * 60


@contextmanager
def exclusive(settings: Settings) -> Iterator[None]:
    """One change at a time; a second `up` waits for the first, which may be building."""
    settings.cache.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with settings.lock.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = (
                        f"another command has held {settings.lock} for {LOCK_SECONDS} s; see `fuser {settings.lock}`"
                    )
                    raise ClusterError("Locked", message) from None
                time.sleep(0.2)
        yield
