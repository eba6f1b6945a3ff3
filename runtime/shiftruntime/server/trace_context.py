"""W3C trace context: which trace a call belongs to. We make no spans; the id is in our log lines and goes back."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class TraceContext:
    trace_id: str  # 32 hexadecimal digits
    parent_id: str  # 16 hexadecimal digits
    traceparent: str  # as it came

    @staticmethod
    def parse(traceparent: str) -> TraceContext | None:
        """None for what the specification calls invalid: a trace must not fail the call that carries it."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return None
        version, trace_id, parent_id, _, more = match.groups()
        known = version == "00"  # later versions may append fields
        if version == "ff" or (known and more) or not trace_id.strip("0") or not parent_id.strip("0"):
            return None
        return TraceContext(trace_id, parent_id, traceparent)
