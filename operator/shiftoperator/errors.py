"""What can go wrong, by who can cure it."""

from __future__ import annotations

# Reasons of a UserError.
INVALID_SPEC = "InvalidSpec"
INVALID_POD_TEMPLATE = "InvalidPodTemplate"  # the API server would not take the pods that it makes
SECRET_MISSING = "SecretMissing"  # noqa: S105 - a reason: pods could not start without that Secret
CLAIM_MISSING = "ClaimMissing"  # nor without that PersistentVolumeClaim
NAME_CONFLICT = "NameConflict"
FORBIDDEN = "Forbidden"  # the operator lacks a right
REFUSED_BY_API = "RefusedByApi"  # validation or admission of the API server
WRITE_FAILING = "WriteFailing"  # the API server takes no child at the moment, and has not for a while


class UserError(Exception):
    """The resource asks for something impossible; the message names the value and the fix."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class InvalidSpecError(UserError):
    """A spec that the CRD's validation should have refused; it got in past an older CRD."""

    def __init__(self, message: str) -> None:
        super().__init__(INVALID_SPEC, message)


class InvalidPodTemplateError(UserError):
    """The API server refused the pod template; the message names the path."""

    def __init__(self, message: str) -> None:
        super().__init__(INVALID_POD_TEMPLATE, message)


class NameConflictError(UserError):
    """A child's name is taken by an object that is not ours."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            NAME_CONFLICT,
            f"{kind} {name} exists and does not belong to this ShiftDeployment; delete it or rename this one",
        )


class TransientError(Exception):
    """Worth trying again after `delay_seconds`."""

    def __init__(self, message: str, delay_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.delay_seconds = delay_seconds


class ConflictError(TransientError):
    """The object changed since it was read."""


class RuntimeCallError(Exception):
    """A call to a pod's control port failed; `code` is the name of the gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
