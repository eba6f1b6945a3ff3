"""What bounds an engine, and what a request that does not fit is refused with."""

from __future__ import annotations

from dataclasses import dataclass


class QueueFullError(Exception):
    """No room to wait; the message has the limit."""


class NeverFitsError(ValueError):
    """The request can never run here; the message has the limit."""


class DuplicateRequestError(ValueError):
    """A request with this id is in flight."""


class DeadlinePassedError(Exception):
    """The request's deadline is not after its arrival."""


@dataclass(frozen=True)
class Limits:
    """What bounds a step and the queue. ``max_num_seqs`` need not divide by anything: steps are padded."""

    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    max_waiting_requests: int
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "prefix_cache" and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
