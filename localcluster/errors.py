"""The one exception that people see."""

from __future__ import annotations


class ClusterError(Exception):
    """Something a person can act on: a CamelCase reason for machines, a sentence with the value and the fix."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
