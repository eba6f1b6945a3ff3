"""Every refusal of the runtime: a CamelCase reason for machines and a sentence for people.

The reasons are those of shiftprotos.contract; the same pair appears in the termination log, in gRPC and in conditions.
"""

from __future__ import annotations

from shiftprotos import contract


class ShiftError(Exception):
    """Base of all typed errors of the runtime."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[type[ShiftError], tuple[str, str]]:
        return type(self), (self.reason, self.message)


class StartupError(ShiftError):
    """The runtime cannot start with this model, machine or command line."""


class RequestError(ShiftError):
    """One request is refused; its neighbours are unharmed."""


class RankError(ShiftError):
    """A rank died, hung or saw another plan than its peers; the whole group fails."""


def invalid_layout(message: str) -> StartupError:
    return StartupError(contract.REASON_INVALID_LAYOUT, message)


def model_not_found(message: str) -> StartupError:
    return StartupError(contract.REASON_MODEL_NOT_FOUND, message)


def model_damaged(message: str) -> StartupError:
    return StartupError(contract.REASON_MODEL_DAMAGED, message)


def model_unsupported(message: str) -> StartupError:
    return StartupError(contract.REASON_MODEL_UNSUPPORTED, message)


def invalid_argument(message: str) -> StartupError:
    return StartupError(contract.REASON_INVALID_ARGUMENT, message)


def fetch_failed(message: str) -> StartupError:
    return StartupError(contract.REASON_FETCH_FAILED, message)
