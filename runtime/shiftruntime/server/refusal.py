"""A refusal: one status, one reason for machines, one sentence for people, wherever it is found."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from shiftprotos import contract

from shiftruntime.engine.client import EngineFailed, PolicyRefused, RequestRefused

# Trailing metadata that carries the CamelCase reason; the status text is the sentence.
REASON_METADATA = contract.METADATA_REASON

DRAINING = contract.REFUSED_DRAINING
STARTING = contract.REFUSED_STARTING
UNAUTHENTICATED = contract.REFUSED_UNAUTHENTICATED
DUPLICATE_REQUEST = contract.REFUSED_DUPLICATE_REQUEST
ENGINE_SILENT = "EngineSilent"

_REQUEST_STATUS = {
    contract.REFUSED_DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    contract.REFUSED_QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DRAINING: grpc.StatusCode.UNAVAILABLE,
    DUPLICATE_REQUEST: grpc.StatusCode.ALREADY_EXISTS,
    contract.REFUSED_INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
}
_POLICY_STATUS = {
    contract.REFUSED_STALE_GENERATION: grpc.StatusCode.FAILED_PRECONDITION,
    contract.REFUSED_BUSY: grpc.StatusCode.FAILED_PRECONDITION,
    contract.REFUSED_INVALID_POLICY: grpc.StatusCode.INVALID_ARGUMENT,
}


class Refusal(Exception):
    """A call that ends with an error status."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @staticmethod
    def of(error: RequestRefused | PolicyRefused | EngineFailed) -> Refusal:
        """The refusal for what the engine said."""
        if isinstance(error, EngineFailed):
            return Refusal(grpc.StatusCode.UNAVAILABLE, error.reason, error.message)
        if isinstance(error, PolicyRefused):
            return Refusal(_POLICY_STATUS.get(error.kind, grpc.StatusCode.INTERNAL), error.kind, error.message)
        return Refusal(_REQUEST_STATUS.get(error.reason, grpc.StatusCode.INTERNAL), error.reason, error.message)

    async def end(self, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        """End the call with this status."""
        await context.abort(self.code, self.message, trailing_metadata=((REASON_METADATA, self.reason),))
