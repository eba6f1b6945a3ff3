"""What a user can cure; the sentence names the value and the fix."""

from __future__ import annotations


class UserError(ValueError):
    """A command line, a trace or a file that cannot be used."""


class TraceError(UserError):
    """A trace that cannot be replayed; the sentence has file and line."""
