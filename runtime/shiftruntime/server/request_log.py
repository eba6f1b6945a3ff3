"""What became of one request: its outcome for the metrics, and its line in the log."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic

import grpc

from shiftruntime.engine.messages import Finish
from shiftruntime.metrics import RequestMetrics
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request import Delta
from shiftruntime.server.trace_context import TraceContext

log = logging.getLogger(__name__)

SHOWN_CHARACTERS = 128

Accepted = Callable[[], Awaitable[None]]

_OUTCOMES = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.NOT_FOUND: "invalid",
    grpc.StatusCode.ALREADY_EXISTS: "invalid",
    grpc.StatusCode.UNIMPLEMENTED: "invalid",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "rejected",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
    grpc.StatusCode.CANCELLED: "abort",
}
_FINISH_OUTCOMES = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.ABORT: "abort"}


@dataclass
class Record:
    """Filled while the request runs."""

    request_id: str
    tenant: str
    trace: TraceContext | None
    arrived: float = field(default_factory=monotonic)
    accepted: bool = False
    outcome: str = "error"
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def accepting(self, accepted: Accepted) -> Accepted:
        """``accepted``, noted here as well."""

        async def noted() -> None:
            self.accepted = True
            await accepted()

        return noted

    def add(self, delta: Delta) -> None:
        self.completion_tokens += len(delta.token_ids)
        if delta.finish is not None:
            self.outcome = _FINISH_OUTCOMES[delta.finish]
        if delta.usage is not None:
            self.prompt_tokens = delta.usage.prompt_tokens

    def refuse(self, refusal: Refusal) -> None:
        self.outcome, self.reason = _OUTCOMES.get(refusal.code, "error"), refusal.reason

    def cancel(self) -> None:
        """The reader left; one that leaves after the last delta changes nothing."""
        if self.outcome == "error":
            self.outcome = "cancelled"

    def close(self, metrics: RequestMetrics, log_it: bool) -> None:
        seconds = monotonic() - self.arrived
        metrics.ended(self.outcome)
        if self.reason and not self.accepted:
            metrics.refused(self.outcome, seconds)
        if log_it:
            log.info("%s", self._sentence(seconds), extra={"fields": self._fields(seconds)})

    def _sentence(self, seconds: float) -> str:
        trace = f", trace {self.trace.trace_id}" if self.trace else ""
        if self.reason:
            return f"request {_shown(self.request_id)}: {self.outcome} ({self.reason}) after {seconds:.3f} s{trace}"
        tokens = f"{self.prompt_tokens} prompt and {self.completion_tokens} output tokens"
        return f"request {_shown(self.request_id)}: {self.outcome} after {seconds:.3f} s, {tokens}{trace}"

    def _fields(self, seconds: float) -> dict[str, object]:
        return {
            "request_id": _shown(self.request_id),
            "tenant": _shown(self.tenant),
            "outcome": self.outcome,
            "reason": self.reason,
            "seconds": round(seconds, 6),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "trace_id": self.trace.trace_id if self.trace else "",
        }


def _shown(name: str) -> str:
    """A client's name, which may be one that was refused: it must neither fill the log nor look like another line."""
    short = name if len(name) <= SHOWN_CHARACTERS else name[:SHOWN_CHARACTERS] + "…"
    return short if short.isprintable() else repr(short)
