"""What this machine's own files refuse, and what to do about it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from shiftruntime.errors import StartupError, fetch_failed

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
# Not of a network: another try would end in the same way.
OF_THIS_MACHINE = _NO_ROOM | _NO_RIGHT | {errno.EIO}


def of_this_machine(uri: str, cache: Path, total: int, error: OSError) -> StartupError:
    """`total`: bytes of the model, as far as they are known."""
    if error.errno in _NO_ROOM:
        return fetch_failed(
            f"{uri}: {cache} has no room ({error.strerror}): the model has {total} bytes, {_free(cache)} are free; "
            "enlarge that volume (cache.sizeLimit, the claim or the node's disk), or remove old models from it"
        )
    if error.errno in _NO_RIGHT:
        where = error.filename or cache
        return fetch_failed(
            f"{uri}: {where} cannot be written ({error.strerror}); let user {os.getuid()} write to {cache}"
        )
    return fetch_failed(f"{uri}: {error}")


def _free(cache: Path) -> int:
    try:
        return shutil.disk_usage(cache).free
    except OSError:
        return 0


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all: others may read it while it is written, and write it too. A file that says this already
    stays: a model that is there whole starts on a full volume too."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
