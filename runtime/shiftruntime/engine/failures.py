"""What the front end hears when the engine does not do as asked."""

from __future__ import annotations


class EngineFailed(Exception):
    """The engine cannot go on, or did not start."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class RequestRefused(Exception):
    """Not admitted; ``reason`` as in messages.Refused."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class PolicyRefused(Exception):
    """A control call was refused; ``kind`` as in messages.Answer."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
