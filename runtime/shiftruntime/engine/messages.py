"""What the front end and the engine process say to each other: typed frames, no pickle.

Each direction is one tagged union; shiftruntime.worker.frames puts them on a socket with a length in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
from shiftcore.costs import CostPoint
from shiftcore.policy import Policy
from shiftcore.scheduler import Finish


class Grammar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the text must look like."""

    kind: Literal["json_schema", "json_object", "regex"]
    text: str  # the schema or the expression; empty for json_object


# UTF-8 bytes of a grammar's text: what its compilation costs grows with them, an expression's faster.
MAX_GRAMMAR_BYTES = {"json_schema": 64 << 10, "json_object": 0, "regex": 4 << 10}


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling of one request, complete: the front end has filled in every default."""

    temperature: float
    top_p: float
    seed: int  # 0 <= seed < 2**63
    max_tokens: int  # at most what fits in the model's length
    stop_token_ids: tuple[int, ...] = ()  # includes the model's end-of-sequence ids unless ignore_eos
    logprobs: bool = False
    top_logprobs: int = 0  # likeliest alternatives to report per token
    prompt_logprobs: bool = False
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0  # relative to the likeliest token
    min_tokens: int = 0  # no stop token before
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over the output, as the next
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None


# --- front end -> engine -------------------------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    tenant: str = ""  # shares of the pod and prefixes in the cache are per tenant
    priority: int = 0  # lower runs first
    timeout_seconds: float | None = None  # from arrival in the engine; then it ends with Finish.DEADLINE
    cache_salt: str = ""  # of the tenant's prefixes in the cache, only those under the same salt are found
    shares_prompt_with: str = ""  # n > 1: the request that computes the same prompt; this one waits for its blocks


class Abort(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    request_id: str


class Call(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A control call; the answer carries the same call_id."""

    call_id: int
    verb: str  # "state" | "set_policy" | "calibrate" | "drain"
    policy: Policy | None = None


class Shutdown(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """End the ranks and the engine process. Sent after the drain."""


ToEngine = Submit | Abort | Call | Shutdown

# --- engine -> front end -------------------------------------------------------------------------------------------


class PhaseUpdate(msgspec.Struct, frozen=True, tag=True):
    """Start-up progress; the last update of a phase has done = True."""

    name: str  # shiftprotos.contract.PHASES
    seconds: float
    done_bytes: int = 0
    total_bytes: int = 0
    done: bool = False


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Start-up is over; what the front end must know to check requests."""

    architecture: str
    dtype: str
    max_model_len: int
    vocab_size: int
    max_prompt_tokens: int
    gears: tuple[str, ...]


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on. During start-up: why it did not start."""

    reason: str
    message: str


class Admitted(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    reason: str  # shiftprotos.contract.REFUSED_…
    message: str


class TopLogprobs(msgspec.Struct, frozen=True):
    """The likeliest tokens at one position, likeliest first."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Journey(msgspec.Struct, frozen=True):
    """How a request went, for trailers and usage."""

    queue_seconds: float  # from arrival to its first step
    cached_tokens: int  # of the prompt, from the prefix cache
    gear_tokens: dict[str, int]  # tokens computed per gear, the prompt's included


class Output(msgspec.Struct, frozen=True, tag=True):
    """New tokens of a request; the last one of a request has ``finish``."""

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish: Finish | None = None
    top_logprobs: tuple[TopLogprobs, ...] = ()  # one per token when asked for
    prompt_logprobs: tuple[float, ...] = ()  # of prompt tokens 1 …, in pieces as they are computed, before the output
    journey: Journey | None = None  # with ``finish``


class Answer(msgspec.Struct, frozen=True, tag=True):
    """Answer to a Call: one of state or error."""

    call_id: int
    state: EngineState | None = None
    error_kind: str = ""  # shiftprotos.contract.REFUSED_…
    error: str = ""


# A step of a small model on a GPU, up to a full prefill on a slow CPU.
STEP_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class GearState:
    name: str
    sequence: int
    tensor: int
    costs: tuple[CostPoint, ...]
    steps: int
    tokens: int
    busy_seconds: float
    capacity_tokens_per_second: float
    step_counts: tuple[int, ...]  # steps per bucket of STEP_BUCKETS_SECONDS, and of those that took longer


@dataclass(frozen=True)
class LoadState:
    """Units and windows as in shiftparallel.v1.Load."""

    running_requests: int
    waiting_requests: int
    waiting_tokens: int
    kv_blocks_total: int
    kv_blocks_free: int  # cached ones included: they are taken when needed
    oldest_wait_seconds: float
    tokens_per_second: float
    busy_fraction: float
    max_running_requests: int
    ttft_p95_seconds: float
    tpot_p95_seconds: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float
    kv_blocks_cached: int = 0  # used by nobody, but their prefix can be hit
    # These three count since the start.
    prefix_queried_tokens: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hit_tokens: int = 0  # of these, found
    preemptions: int = 0
    ttft_p50_seconds: float = 0.0
    ttft_p90_seconds: float = 0.0
    ttft_p99_seconds: float = 0.0
    tpot_p50_seconds: float = 0.0
    tpot_p90_seconds: float = 0.0
    tpot_p99_seconds: float = 0.0


@dataclass(frozen=True)
class SelfCheckState:
    passed: bool
    max_logprob_difference: float
    tolerance: float
    gears: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class EngineState:
    policy: Policy
    generation_applied: int  # minimum over ranks
    gears: tuple[GearState, ...]
    base_gear: str
    crossover_tokens: int | None
    crossover_reason: str
    crossover_message: str
    threshold_tokens: int | None
    threshold_source: str  # shiftcore.gears.ThresholdSource
    shifts: int
    load: LoadState
    self_check: SelfCheckState | None
    draining: bool


FromEngine = PhaseUpdate | Ready | Fatal | Admitted | Refused | Output | Answer

__all__ = [
    "MAX_GRAMMAR_BYTES",
    "STEP_BUCKETS_SECONDS",
    "Abort",
    "Admitted",
    "Answer",
    "Call",
    "EngineState",
    "Fatal",
    "Finish",
    "FromEngine",
    "GearState",
    "Grammar",
    "Journey",
    "LoadState",
    "Output",
    "PhaseUpdate",
    "Ready",
    "Refused",
    "Sampling",
    "SelfCheckState",
    "Shutdown",
    "Submit",
    "ToEngine",
    "TopLogprobs",
]
