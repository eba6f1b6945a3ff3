"""What a generation may ask for. Pure: values and limits in, complete sampling or a Refusal out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc

from shiftruntime.engine.messages import MAX_GRAMMAR_BYTES, Sampling
from shiftruntime.models.generation_config import GenerationDefaults
from shiftruntime.server.refusal import Refusal, quoted
from shiftruntime.server.request import Generation, Options

T = TypeVar("T")

# Dividing logits by less overflows float32; the text is the greedy one long before.
GREEDY_BELOW_TEMPERATURE = 1e-4
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_ID_CHARACTERS = 128
MAX_CHOICES = 32
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_PRIORITY = 1000
# Of one call that tokenises or detokenises: more than any model reads, and an answer that a client can take.
MAX_CALL_TOKENS = 1 << 20
_MAX_UTF8_BYTES = 4  # of one character
# The engine counts seeds in 63 bits.
_SEED_MASK = 2**63 - 1

NO_DEFAULTS = GenerationDefaults()


@dataclass(frozen=True)
class Limits:
    """What this pod can serve."""

    served_name: str
    vocab_size: int
    max_prompt_tokens: int
    max_model_len: int
    eos_ids: tuple[int, ...]
    defaults: GenerationDefaults = NO_DEFAULTS
    request_seconds: float = 3600.0  # every request ends by then


@dataclass(frozen=True)
class _Range:
    """Where an option must lie; the lower end may be open."""

    reason: str
    low: float
    high: float
    open_low: bool = False
    note: str = ""

    def holds(self, value: float) -> bool:  # NaN compares false
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        ends = f"({self.low:g}, {self.high:g}]" if self.open_low else f"{self.low:g}..{self.high:g}"
        return ends + (f" ({self.note})" if self.note else "")


_RANGES = {
    "temperature": _Range("TemperatureInvalid", 0, 100, note="0 is greedy"),
    "top_p": _Range("TopPInvalid", 0, 1, open_low=True),
    "top_k": _Range("TopKInvalid", 0, 2**31 - 1, note="0 is no limit"),
    "min_p": _Range("MinPInvalid", 0, 1, note="0 is no limit"),
    "repetition_penalty": _Range("PenaltyInvalid", 0, 100, open_low=True, note="1 is none"),
    "presence_penalty": _Range("PenaltyInvalid", -2, 2, note="0 is none"),
    "frequency_penalty": _Range("PenaltyInvalid", -2, 2, note="0 is none"),
    "n": _Range("ChoicesInvalid", 1, MAX_CHOICES),
    "top_logprobs": _Range("LogprobsInvalid", 0, MAX_TOP_LOGPROBS),
}


def check_generation(generation: Generation, limits: Limits) -> None:
    """Everything that can be said before the prompt is tokenised; raises Refusal."""
    check_model(generation.model, limits)
    _check_name("request_id", "RequestIdInvalid", generation.request_id)
    _check_name("tenant", "TenantInvalid", generation.tenant)
    _check_name("cache_salt", "CacheSaltInvalid", generation.cache_salt)
    _check_range("priority", generation.priority, _Range("PriorityInvalid", -MAX_PRIORITY, MAX_PRIORITY))
    if generation.timeout_seconds is not None:
        within = _Range("TimeoutInvalid", 0, limits.request_seconds, open_low=True)
        _check_range("timeout_seconds", generation.timeout_seconds, within)
    for name, within in _RANGES.items():
        _check_range(name, getattr(generation.options, name), within)
    _check_lengths(generation)
    _check_stops(generation.options, limits)
    _check_logit_bias(generation.options, limits)
    _check_grammar(generation.options)
    if generation.prompt is None:
        raise _invalid("PromptEmpty", "the request has no prompt; set text or tokens")


def check_choices(n: int) -> None:
    """For a front that makes something for each choice before the generation begins; raises Refusal."""
    _check_range("n", n, _RANGES["n"])


def check_model(model: str, limits: Limits) -> None:
    """Raises Refusal (NOT_FOUND) for another model than the one that is served."""
    if model not in ("", limits.served_name):
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "ModelNotFound",
            f"model {quoted(model)} is not served here; this pod serves {limits.served_name!r}",
        )


def check_prompt_text(text: str, longest_token_bytes: int | None, limits: Limits) -> None:
    """A text that can be no prompt, however it is tokenised; raises Refusal.

    ``longest_token_bytes``: what one token stands for at most, None where nothing is known.
    """
    if longest_token_bytes is None:
        return
    room = limits.max_prompt_tokens * longest_token_bytes
    if len(text) * _MAX_UTF8_BYTES <= room:
        return
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    if num_bytes > room:
        raise _invalid(
            "PromptTooLong",
            f"the prompt has {num_bytes} bytes; this model takes at most {limits.max_prompt_tokens} tokens, and none "
            f"stands for more than {longest_token_bytes} bytes",
        )


def prompt_too_long(num_tokens: int, limits: Limits) -> Refusal:
    return _invalid(
        "PromptTooLong", f"the prompt has {num_tokens} tokens; this model takes at most {limits.max_prompt_tokens}"
    )


def check_call_tokens(num_tokens: int) -> None:
    """For the calls that only turn text into ids, or ids into text; raises Refusal."""
    if num_tokens > MAX_CALL_TOKENS:
        raise _invalid(
            "TooManyTokens", f"{num_tokens} tokens; one call turns at most {MAX_CALL_TOKENS}, give them in parts"
        )


def check_prompt(tokens: Sequence[int], limits: Limits) -> None:
    """A tokenised prompt; raises Refusal."""
    if not tokens:
        raise _invalid("PromptEmpty", "the prompt has 0 tokens; at least 1 is needed")
    if len(tokens) > limits.max_prompt_tokens:
        raise prompt_too_long(len(tokens), limits)
    check_token_ids("prompt token id", tokens, limits)


def resolve_sampling(options: Options, prompt_tokens: int, limits: Limits, drawn_seed: int, index: int = 0) -> Sampling:
    """Checked options of choice ``index`` with every default filled in; raises Refusal when they do not fit."""
    defaults, room = limits.defaults, limits.max_model_len - prompt_tokens
    temperature = _first(1.0, options.temperature, defaults.temperature)
    max_tokens = max(1, min(_first(room, options.max_tokens, defaults.max_new_tokens), room))
    min_tokens = _first(0, options.min_tokens)
    if min_tokens > max_tokens:
        raise _invalid(
            "MinTokensInvalid",
            f"min_tokens {min_tokens} is above the {max_tokens} tokens that max_tokens and the model's length allow",
        )
    ends = () if options.ignore_eos else limits.eos_ids
    top_k = _first(0, options.top_k, defaults.top_k)
    return Sampling(
        temperature=temperature if temperature >= GREEDY_BELOW_TEMPERATURE else 0.0,
        top_p=_first(1.0, options.top_p, defaults.top_p),
        seed=(_first(drawn_seed, options.seed) + index) & _SEED_MASK,
        max_tokens=max_tokens,
        stop_token_ids=tuple(sorted({*options.stop_token_ids, *ends})),
        logprobs=options.logprobs or options.top_logprobs > 0,
        top_logprobs=options.top_logprobs,
        prompt_logprobs=options.prompt_logprobs and index == 0,
        top_k=top_k if top_k < limits.vocab_size else 0,
        min_p=_first(0.0, options.min_p, defaults.min_p),
        min_tokens=min_tokens,
        repetition_penalty=_first(1.0, options.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_first(0.0, options.presence_penalty),
        frequency_penalty=_first(0.0, options.frequency_penalty),
        logit_bias=tuple(sorted(options.logit_bias.items())),
        grammar=options.grammar,
    )


def _first(otherwise: T, *values: T | None) -> T:
    """The first value that is not None: the client's, then the model's, then ours."""
    return next((value for value in values if value is not None), otherwise)


def _check_range(name: str, value: float | None, within: _Range) -> None:
    if value is not None and not within.holds(value):
        raise _invalid(within.reason, f"{name} {value} is outside {within}")


def _check_name(what: str, reason: str, name: str) -> None:
    if len(name) > MAX_ID_CHARACTERS:
        raise _invalid(reason, f"{what} has {len(name)} characters; at most {MAX_ID_CHARACTERS} are allowed")
    if not name.isprintable():
        raise _invalid(reason, f"{what} {name!r} has characters that cannot be printed")


def _check_lengths(generation: Generation) -> None:
    options = generation.options
    if options.max_tokens is not None and options.max_tokens < 1:
        scores = generation.echo or options.prompt_logprobs
        if options.max_tokens < 0 or not scores:
            raise _invalid(
                "MaxTokensInvalid",
                f"max_tokens {options.max_tokens} is below 1; leave it unset for the model's length "
                "(0 scores a prompt, with echo or prompt_logprobs)",
            )
    if options.min_tokens is not None and options.min_tokens < 0:
        raise _invalid("MinTokensInvalid", f"min_tokens {options.min_tokens} is below 0")


def _check_stops(options: Options, limits: Limits) -> None:
    if len(options.stop) > MAX_STOP_STRINGS:
        raise _invalid("StopInvalid", f"{len(options.stop)} stop strings; at most {MAX_STOP_STRINGS} are allowed")
    for stop in options.stop:
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            raise _invalid(
                "StopInvalid",
                f"stop string {quoted(stop)} has {len(stop)} characters; 1 to {MAX_STOP_CHARACTERS} are allowed",
            )
    if len(options.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise _invalid(
            "StopInvalid", f"{len(options.stop_token_ids)} stop token ids; at most {MAX_STOP_TOKEN_IDS} are allowed"
        )
    check_token_ids("stop token id", options.stop_token_ids, limits)


def _check_logit_bias(options: Options, limits: Limits) -> None:
    if len(options.logit_bias) > MAX_LOGIT_BIASES:
        raise _invalid(
            "LogitBiasInvalid", f"{len(options.logit_bias)} logit biases; at most {MAX_LOGIT_BIASES} are allowed"
        )
    check_token_ids("logit_bias token id", tuple(options.logit_bias), limits)
    for token, bias in options.logit_bias.items():
        _check_range(f"logit_bias of token {token}:", bias, _Range("LogitBiasInvalid", -100, 100))


def _check_grammar(options: Options) -> None:
    """Its length only; whether it compiles is said by the grammar library, at admission."""
    if options.grammar is None:
        return
    size, most = len(options.grammar.text.encode("utf-8", "surrogatepass")), MAX_GRAMMAR_BYTES[options.grammar.kind]
    if size > most:
        raise _invalid("GrammarInvalid", f"the {options.grammar.kind} has {size} bytes; at most {most} are allowed")


def check_token_ids(what: str, ids: Sequence[int], limits: Limits, first: int = 0) -> None:
    """Raises Refusal that names the first unknown id and its position, counted from ``first``."""
    if not ids or (min(ids) >= 0 and max(ids) < limits.vocab_size):  # several times as fast as the loop
        return
    for position, token in enumerate(ids, first):
        if not 0 <= token < limits.vocab_size:
            raise _invalid(
                "UnknownTokenId",
                f"{what} {token} at position {position} is unknown; this model's ids are 0..{limits.vocab_size - 1}",
            )


def _invalid(reason: str, message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason, message)
