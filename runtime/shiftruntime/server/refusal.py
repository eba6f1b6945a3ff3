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
    contract.REFUSED_ABORTED: grpc.StatusCode.CANCELLED,
}
_POLICY_STATUS = {
    contract.REFUSED_STALE_GENERATION: grpc.StatusCode.FAILED_PRECONDITION,
    contract.REFUSED_BUSY: grpc.StatusCode.FAILED_PRECONDITION,
    contract.REFUSED_INVALID_POLICY: grpc.StatusCode.INVALID_ARGUMENT,
}


# Status messages travel in HTTP/2 headers: clients take 8 KiB of them, and see another status when there is more.
MAX_MESSAGE_BYTES = 4096
QUOTED_CHARACTERS = 64


def quoted(text: str) -> str:
    """A client's text in a sentence, cut."""
    return repr(text if len(text) <= QUOTED_CHARACTERS else text[:QUOTED_CHARACTERS] + "…")


def _fitting(message: str) -> str:
    """As much of it as fits when gRPC percent-encodes it."""
    size = 0
    for position, character in enumerate(message):
        plain = " " <= character <= "~" and character != "%"
        size += 1 if plain else 3 * len(character.encode("utf-8", "surrogatepass"))
        if size > MAX_MESSAGE_BYTES:
            return message[:position] + "…"
    return message


class Refusal(Exception):
    """A call that ends with an error status."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        message = _fitting(message)
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
