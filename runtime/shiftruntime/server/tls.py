"""TLS of the gRPC ports, from files that may be replaced while the process runs, as Kubernetes does with a Secret."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from shiftprotos import contract

from shiftruntime.errors import StartupError

log = logging.getLogger(__name__)

_Stamp: TypeAlias = "tuple[tuple[int, int, int], ...]"
_Configuration: TypeAlias = Any  # the stubs of grpc name its type, but do not have it


@dataclass(frozen=True)
class TlsFiles:
    """PEM files; with ``client_ca`` a client must show a certificate that this authority signed."""

    certificate: Path  # with its chain
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))


class TlsCredentials:
    """Server credentials that every new connection takes from the newest good files."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files; raises StartupError that names the one that is wrong."""
        self._files = files
        try:
            self._stamp, self._configuration = self._read()
        except (OSError, ValueError) as error:
            raise StartupError(contract.REASON_INVALID_ARGUMENT, f"no TLS: {error}") from error

    def grpc(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._configuration, self._newest, require_client_authentication=self._files.client_ca is not None
        )

    def _newest(self) -> _Configuration:
        """Called by gRPC for every handshake. Files that became unreadable leave the last ones in force."""
        try:
            if _stamp(self._files) != self._stamp:
                self._stamp, self._configuration = self._read()
                log.info("TLS certificate read again from %s", self._files.certificate)
        except (OSError, ValueError) as error:
            log.warning("TLS certificate not read again: %s", error)
        return self._configuration

    def _read(self) -> tuple[_Stamp, _Configuration]:
        """Raises OSError or ValueError."""
        files, stamp = self._files, _stamp(self._files)
        _check(files)
        authority = None if files.client_ca is None else files.client_ca.read_bytes()
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        return stamp, grpc.ssl_server_certificate_configuration([pair], authority)


def _check(files: TlsFiles) -> None:
    """gRPC would take wrong files without a word and fail every handshake; raises OSError or ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except ssl.SSLError as error:
        raise ValueError(f"{files.certificate} and {files.key} are no pair of certificate and key: {error}") from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{files.client_ca} holds no certificate: {error}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")


def _stamp(files: TlsFiles) -> _Stamp:
    """Differs when another file, or other content, lies at one of the paths; raises OSError."""
    stats = [path.stat() for path in files.paths]
    return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in stats)
