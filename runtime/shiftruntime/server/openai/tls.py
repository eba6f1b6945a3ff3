"""TLS of the OpenAI port: the same files as gRPC's, read again when they change."""

from __future__ import annotations

import logging
import ssl

from shiftprotos import contract

from shiftruntime.errors import StartupError
from shiftruntime.server.tls import TlsFiles

log = logging.getLogger(__name__)


class ReloadingTls:
    """A context whose new connections use the newest good files."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files; raises StartupError."""
        self._files = files
        try:
            self._stamp = self._look()
            self.context = self._load()
        except (OSError, ValueError) as error:
            raise StartupError(contract.REASON_INVALID_ARGUMENT, f"no TLS: {error}") from error
        self.context.sni_callback = self._refresh

    def _refresh(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """At every handshake. Files that became unreadable leave the last ones in force."""
        try:
            if self._look() != self._stamp:
                self._stamp, fresh = self._look(), self._load()
                fresh.sni_callback = self._refresh
                self.context = fresh
                log.info("TLS certificate of the OpenAI port read again from %s", self._files.certificate)
        except (OSError, ValueError) as error:
            log.warning("TLS certificate not read again: %s", error)
        connection.context = self.context

    def _load(self) -> ssl.SSLContext:
        """Raises OSError or ValueError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._files.certificate, self._files.key, password=lambda: "")
        if self._files.client_ca is not None:
            context.load_verify_locations(self._files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        stats = [path.stat() for path in self._files.paths]
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in stats)
