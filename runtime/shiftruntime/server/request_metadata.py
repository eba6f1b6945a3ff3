"""What a gRPC call says in its metadata besides its message."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from shiftprotos import contract

from shiftruntime.server.trace_context import TraceContext

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def trace_of(context: Context) -> TraceContext | None:
    """The call's trace context, if it carries a valid one."""
    for key, value in context.invocation_metadata() or ():
        if key == contract.METADATA_TRACEPARENT and isinstance(value, str):
            return TraceContext.parse(value)
    return None


def trace_metadata(trace: TraceContext | None) -> tuple[tuple[str, str], ...]:
    """Initial metadata that sends the trace context back."""
    return ((contract.METADATA_TRACEPARENT, trace.traceparent),) if trace else ()
