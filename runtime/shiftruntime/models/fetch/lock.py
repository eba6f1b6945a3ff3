"""One process at a time for one download, and what those that wait for it are told.

Assumed of the file system: locks (flock) and renames that all nodes see, as NFS 4, CephFS, Lustre and disks have them.
A lock goes with its holder: the kernel frees it when the process ends, the server of a shared volume when the node is
lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shiftruntime.errors import fetch_failed
from shiftruntime.models.manifest import Progress, Stopped

# A holder that says nothing new for so long stands still; a node that was lost has lost its locks before. Less than
# what a whole fetch may be silent for (server/fetching.py), so that the pod names the holder.
_STALL_SECONDS = 840.0
_POLL_SECONDS = 0.5
_TELL_SECONDS = 1.0
_NOTE_BYTES = 64
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def _nobody(done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Report:
    """Who is told how far a fetch is, in (bytes done, bytes in total); each call is a sign of life."""

    fetched: Progress = _nobody
    checked: Progress = _nobody  # of the sums that are taken when all has come


@contextmanager
def locked(path: Path, report: Report, stop: threading.Event) -> Iterator[Report]:
    """The holder reports to what this yields; while another process holds the lock, `report` is told of its progress.

    Raises StartupError when that one stands still, Stopped soon after ``stop`` is set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        _wait(file, path, report, stop)
        os.ftruncate(file, 0)
        note = _Note(file)
        yield Report(note.written(b"fetched", report.fetched), note.written(b"checked", report.checked))
    finally:
        os.close(file)


def try_lock(file: int, path: Path, kind: int) -> bool:
    """Whether an open file is locked now; raises StartupError for a file system without locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise fetch_failed(
            f"{path}: its file system has no locks ({error.strerror}), so pods cannot share it; use a claim whose file "
            "system has flock (NFS 4, CephFS, a disk)"
        ) from error
    return True


def _wait(file: int, path: Path, report: Report, stop: threading.Event) -> None:
    said, since = b"", time.monotonic()
    while not try_lock(file, path, fcntl.LOCK_EX):
        now = _read(path)
        if now != said:
            said, since = now, time.monotonic()
            _pass_on(now, report)
        elif time.monotonic() - since > _STALL_SECONDS:
            raise fetch_failed(
                f"{path} has been locked by another process that made no progress for {_STALL_SECONDS:g} s; "
                "end that pod, then start again"
            )
        if stop.wait(_POLL_SECONDS):
            raise Stopped


def _read(path: Path) -> bytes:
    """Opened anew: a shared volume shows another node's writes to those who open the file after them."""
    return path.read_bytes()[:_NOTE_BYTES]


def _pass_on(note: bytes, report: Report) -> None:
    match note.split():
        case [kind, done, total, _] if done.isdigit() and total.isdigit():
            (report.checked if kind == b"checked" else report.fetched)(int(done), int(total))
        case _:  # nothing yet
            pass


class _Note:
    """In the lock's own file, for those who wait."""

    def __init__(self, file: int) -> None:
        self._file, self._lock = file, threading.Lock()
        self._count, self._at = 0, 0.0

    def written(self, kind: bytes, progress: Progress) -> Progress:
        def tell(done: int, total: int) -> None:
            progress(done, total)
            with self._lock:
                if time.monotonic() - self._at >= _TELL_SECONDS:
                    self._write(kind, done, total)

        return tell

    def _write(self, kind: bytes, done: int, total: int) -> None:
        self._count, self._at = self._count + 1, time.monotonic()
        # One size, so that no reader sees the end of an earlier note.
        os.pwrite(self._file, (b"%s %d %d %d" % (kind, done, total, self._count)).ljust(_NOTE_BYTES), 0)
