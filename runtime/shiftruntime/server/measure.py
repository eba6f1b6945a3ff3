"""What one delta of a choice adds to the metrics, ours and those under vLLM's names."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from shiftruntime.engine.messages import Finish
from shiftruntime.metrics import RequestMetrics
from shiftruntime.server.choices import Choice
from shiftruntime.server.request import Delta, Usage
from shiftruntime.server.vllm_metrics import VllmMetrics


def measure(metrics: RequestMetrics, vllm: VllmMetrics, choice: Choice, delta: Delta, arrived: float) -> None:
    """``arrived``: of the call, in monotonic seconds."""
    now = monotonic()
    if delta.token_ids:
        if choice.last_token is None:
            metrics.first_token(now - arrived)
            vllm.first_token(now - arrived)
        vllm.tokens(len(delta.token_ids), None if choice.last_token is None else now - choice.last_token)
        choice.last_token = now
    if delta.finish is not None and delta.usage is not None:
        decode_seconds = None
        if choice.first_token is not None and choice.last_token is not None:
            decode_seconds = choice.last_token - choice.first_token
            metrics.decoded(choice.tokens - 1, decode_seconds)
        vllm.finished(delta.finish, delta.usage, delta.journey, now - arrived, decode_seconds)


def left(vllm: VllmMetrics, choices: Iterable[Choice], arrived: float) -> None:
    """Choices that end without a last delta, because their client left or their time was over: vLLM calls it abort."""
    for choice in choices:
        if choice.finish is None:
            usage = Usage(len(choice.submit.prompt), choice.tokens, 0)
            vllm.finished(Finish.ABORT, usage, None, monotonic() - arrived, None)
