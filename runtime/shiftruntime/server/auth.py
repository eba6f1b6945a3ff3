"""The bearer token of the control port."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from shiftprotos import contract

from shiftruntime.errors import StartupError
from shiftruntime.server.refusal import UNAUTHENTICATED, Refusal

log = logging.getLogger(__name__)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only


class TokenFile:
    """A token that may be replaced while the process runs, as Kubernetes does with a mounted Secret."""

    def __init__(self, path: Path) -> None:
        """Reads the file; raises StartupError when there is no token in it."""
        self._path = path
        try:
            self._stamp, self._token = self._read()
        except (OSError, ValueError) as error:
            raise StartupError(
                contract.REASON_INVALID_ARGUMENT, f"no control token from {contract.ENV_CONTROL_TOKEN_FILE}: {error}"
            ) from error

    def matches(self, authorization: str) -> bool:
        """Whether ``Bearer <token>`` carries the token; takes the same time for every wrong one."""
        self._refresh()
        return hmac.compare_digest(authorization.encode(), b"Bearer " + self._token)

    def _refresh(self) -> None:
        """Read the file again if it changed. A file that became unreadable leaves the last token in force."""
        try:
            if _stamp(self._path) != self._stamp:
                self._stamp, self._token = self._read()
                log.info("control token read again from %s", self._path)
        except (OSError, ValueError) as error:
            log.warning("control token not read again: %s", error)

    def _read(self) -> tuple[tuple[int, int, int], bytes]:
        stamp = _stamp(self._path)
        token = self._path.read_bytes().strip()
        if not token:
            raise ValueError(f"{self._path} is empty")
        return stamp, token


class BearerInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through only with the token; everything else ends UNAUTHENTICATED before it is looked at."""

    def __init__(self, token: TokenFile) -> None:
        self._token = token
        self._deny: _Handler = grpc.unary_unary_rpc_method_handler(_deny)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        sent = dict(handler_call_details.invocation_metadata).get(contract.AUTHORIZATION_METADATA, "")
        if isinstance(sent, str) and self._token.matches(sent):
            return await continuation(handler_call_details)
        return self._deny


async def _deny(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    await Refusal(
        grpc.StatusCode.UNAUTHENTICATED,
        UNAUTHENTICATED,
        f'the control port needs "{contract.AUTHORIZATION_METADATA}: Bearer <token>" with the control Secret\'s token',
    ).end(context)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Differs when another file, or other content, lies at ``path``."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
