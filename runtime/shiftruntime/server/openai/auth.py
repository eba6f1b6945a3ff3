"""API keys of the HTTP interface, from a file that may be replaced while the process runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from shiftprotos import contract

from shiftruntime.errors import StartupError

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**20


class ApiKeys:
    """One key per line; empty lines and those that begin with # are passed over."""

    def __init__(self, path: Path) -> None:
        """Reads the file; raises StartupError when there is no key in it."""
        self._path = path
        try:
            self._stamp, self._digests = self._read()
        except (OSError, ValueError) as error:
            raise StartupError(contract.REASON_INVALID_ARGUMENT, f"no API key from --api-key-file: {error}") from error

    def matches(self, authorization: str) -> bool:
        """Whether ``Bearer <key>`` carries one of the keys; takes the same time for every wrong one."""
        self._refresh()
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self._digests:  # all of them, always
            found |= hmac.compare_digest(digest, known)
        return found and scheme.lower() == "bearer"

    def _refresh(self) -> None:
        """Read the file again if it changed. A file that became unreadable leaves the last keys in force."""
        try:
            if self._look() != self._stamp:
                self._stamp, self._digests = self._read()
                log.info("API keys read again from %s", self._path)
        except (OSError, ValueError) as error:
            log.warning("API keys not read again: %s", error)

    def _read(self) -> tuple[tuple[int, int, int], list[bytes]]:
        stamp = self._look()
        if stamp[2] > MAX_FILE_BYTES:
            raise ValueError(f"{self._path} has {stamp[2]} bytes; at most {MAX_FILE_BYTES} are read")
        lines = [line.strip() for line in self._path.read_bytes().splitlines()]
        keys = [line for line in lines if line and not line.startswith(b"#")]
        if not keys:
            raise ValueError(f"{self._path} has no key")
        return stamp, [hashlib.sha256(key).digest() for key in keys]

    def _look(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
