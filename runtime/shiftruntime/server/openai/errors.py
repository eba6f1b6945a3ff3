"""Refusals as OpenAI's error object, with the status that its clients act upon."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import grpc
from shiftprotos import contract

from shiftruntime.server.refusal import Refusal

RETRY_SECONDS = 1
CLIENT_CLOSED_REQUEST = 499

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: CLIENT_CLOSED_REQUEST,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class HttpError(Exception):
    """An answer that is an error object."""

    def __init__(
        self, status: int, reason: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after = retry_after  # seconds

    @staticmethod
    def of(refusal: Refusal) -> HttpError:
        status = _STATUS.get(refusal.code, 500)
        retry = RETRY_SECONDS if status in (429, 503) else None
        return HttpError(status, refusal.reason, refusal.message, retry_after=retry)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.reason}}


def invalid(message: str, param: str | None = None, reason: str = contract.REFUSED_INVALID_REQUEST) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, reason, message, param)
