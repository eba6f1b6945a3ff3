"""What is wrong with a command line, and sizes as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(|[KMGT]i?)B?")
_SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", start=1)}


class UsageError(Exception):
    """A command line that cannot be run; the message names the value and the fix."""


def parse_size(text: str) -> int:
    """Bytes of ``512Mi``, ``1.5G`` or ``1048576``; raises UsageError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no size; write bytes or a number with K, Ki, M, Mi, G or Gi, for example 512Mi")
    return int(float(match[1]) * _SIZE_UNITS[match[2]])
