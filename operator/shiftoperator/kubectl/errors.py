"""How a verb ends when it does not succeed."""

from __future__ import annotations

FAILED = 1
NOT_IN_TIME = 2


class RefusedError(Exception):
    """What was asked for cannot be done; the message says why and what to do."""
