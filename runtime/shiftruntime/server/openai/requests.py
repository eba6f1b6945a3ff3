"""What every request for text needs of the pod: its model, its headers, its tokens."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from shiftprotos import contract

from shiftruntime.server.frontend import FrontEnd, Model
from shiftruntime.server.openai.protocol import Request
from shiftruntime.server.trace_context import TraceContext
from shiftruntime.server.validation import check_model

TENANT_HEADER = "x-shift-tenant"  # wins over the body: a gateway in front knows who asks


def model_of(frontend: FrontEnd, name: str) -> Model:
    """The model, if it is served here; raises Refusal."""
    model = frontend.serving()
    check_model(name, model.limits)
    return model


def generation_fields(request: web.Request, body: Request, model: Model) -> dict[str, Any]:
    """Fields of Generation that do not depend on the route."""
    trace = request.headers.get(contract.METADATA_TRACEPARENT)
    return {
        "model": body.model,
        "tenant": request.headers.get(TENANT_HEADER, body.tenant),
        "cache_salt": body.cache_salt,
        "priority": body.priority,
        "timeout_seconds": body.timeout_seconds,
        "trace": TraceContext.parse(trace) if trace else None,
        "visible_special_ids": frozenset() if body.skip_special_tokens else frozenset(model.text.special_ids.values()),
    }


def trace_headers(trace: TraceContext | None) -> dict[str, str]:
    """What sends a call's trace context back."""
    return {contract.METADATA_TRACEPARENT: trace.traceparent} if trace else {}
