"""Values as the CRD's schema takes them: what a pod says must never make a status that the API server refuses."""

from __future__ import annotations

from math import isfinite

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


def text(value: str, length: int) -> str:
    return value[:length]


def int32(value: float) -> int:
    return _within(value, _INT32_MAX)


def int64(value: float) -> int:
    return _within(value, _INT64_MAX)


def _within(value: float, highest: int) -> int:
    """A whole number in 0..highest."""
    if not isfinite(value):
        return highest if value > 0 else 0
    return min(max(round(value), 0), highest)
