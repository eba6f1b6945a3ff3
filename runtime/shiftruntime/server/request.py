"""One generation as every front sees it (native gRPC, KServe, OpenAI HTTP): what is asked, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftruntime.engine.messages import Finish, Grammar, TopLogprobs
from shiftruntime.server.trace_context import TraceContext


@dataclass(frozen=True)
class Options:
    """What a client may ask for. None is the default of the model, or of the server where the model has none."""

    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    top_k: int | None = None  # 0: no limit
    min_p: float | None = None
    seed: int | None = None  # None: drawn by the server; choice i of several uses seed + i
    max_tokens: int | None = None  # None: the model's length; 0 only scores the prompt, with echo or prompt_logprobs
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False  # the text ends with the stop string, or the text of the stop token, that was met
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0  # alternatives per token; above 0 it implies logprobs
    prompt_logprobs: bool = False  # reported with choice 0
    n: int = 1
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id → what is added to its logit
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Generation:
    """A request, not yet checked."""

    prompt: str | tuple[int, ...] | None  # None: the client gave none, which is refused
    options: Options = Options()
    request_id: str = ""  # empty: the server makes one
    model: str = ""  # empty: the one that is served
    tenant: str = ""
    cache_salt: str = ""  # the tenant's cached prefixes are found under the same salt only
    priority: int = 0  # lower runs first
    timeout_seconds: float | None = None  # from arrival; then the request ends DEADLINE_EXCEEDED
    deadline_seconds: float | None = None  # what the transport leaves it; the earlier of the two counts
    echo: bool = False  # each choice's text begins with the prompt's
    add_special_tokens: bool = True  # in front of a text prompt, as the model expects
    visible_special_ids: frozenset[int] = frozenset()  # special tokens that have text, where others have none
    trace: TraceContext | None = None  # for log lines


@dataclass(frozen=True)
class Usage:
    """Tokens of one choice."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache


@dataclass(frozen=True)
class Journey:
    """How one choice went."""

    queue_seconds: float  # from arrival in the engine to its first step
    ttft_seconds: float | None  # from the call's arrival to the first token; None: there was none
    gear_tokens: Mapping[str, int]  # tokens computed for it in each gear, the prompt's included

    @property
    def gear_share(self) -> dict[str, float]:
        """Gear → its share of the tokens; they sum to 1."""
        total = sum(self.gear_tokens.values())
        return {gear: tokens / total for gear, tokens in self.gear_tokens.items()} if total else {}


@dataclass(frozen=True)
class Delta:
    """What is new of one choice; exactly one delta of each choice has ``finish``, and it is the last one."""

    request_id: str
    index: int  # of the choice
    text: str = ""  # never splits a character; may lag behind the ids
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # one per token id when asked for
    top_logprobs: tuple[TopLogprobs, ...] = ()  # one per token id when asked for
    prompt_tokens: int = 0  # how many the prompt has
    prompt_token_ids: tuple[int, ...] = ()  # on the first delta, with echo or prompt_logprobs
    prompt_logprobs: tuple[float, ...] = ()  # of prompt tokens 1 …, in pieces and in order
    finish: Finish | None = None  # STOP, LENGTH or ABORT
    usage: Usage | None = None  # with ``finish``
    journey: Journey | None = None  # with ``finish``
