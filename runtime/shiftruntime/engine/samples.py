"""How the next token of a request is drawn, from its parameters and what it has said so far."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from shiftcore.scheduler import Batch, Request

from shiftruntime.engine.grammar import Matcher
from shiftruntime.engine.messages import Sampling, TopLogprobs
from shiftruntime.worker.messages import ChunkPlan, Done, Likeliest, Penalties, Sample

MAX_TOP_LOGPROBS = 20
_MAX_CHANGE = 1e30  # of a logit; sums, products and quotients of several stay finite
_MIN_TEMPERATURE = 1e-4  # below, logits / temperature overflows; greedy is 0


class SamplingError(ValueError):
    """Parameters that no rank could work with; the message names the value."""


class History:
    """One request's parameters and what its tokens so far make of them.

    It follows the tokens and not the KV cache, so preemption changes nothing.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], output: Iterable[int] = (), matcher: Matcher | None = None
    ) -> None:
        """Raises SamplingError or GrammarError; ``matcher``, in its first state, comes with a grammar."""
        _check(sampling)
        assert (matcher is None) == (sampling.grammar is None), f"{sampling.grammar} with matcher {matcher}"
        self.sampling = sampling
        s = sampling
        self._penalised = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1.0, 0.0, 0.0)
        self._prompt_ids = _int32(set(prompt)) if s.repetition_penalty != 1.0 else b""
        self._counts: Counter[int] = Counter()
        self._prompt_length = len(prompt)
        self._num_output = 0
        self._matcher = matcher
        self._allowed = self._mask()
        self._scored = 0  # prompt tokens 1 … this one have been reported with their log probability
        for token in output:
            self.accept(token)

    def accept(self, token: int) -> None:
        """The request goes on after this token; raises GrammarError when its grammar cannot."""
        self._num_output += 1
        if self._matcher is not None:
            self._matcher.accept(token)
            self._allowed = self._mask()
        if self._penalised:
            self._counts[token] += 1

    @property
    def foreseeable(self) -> bool:
        """Whether it is known how tokens are drawn before those in front of them are known."""
        return self._matcher is None and not self._penalised

    def sample(self, position: int) -> Sample:
        """How the token at ``position`` of the sequence is drawn: the next one, or one after that if foreseeable."""
        s = self.sampling
        early = position - self._prompt_length < s.min_tokens
        return Sample(
            temperature=s.temperature,
            top_p=s.top_p,
            seed=s.seed,
            position=position,
            logprob=s.logprobs or s.top_logprobs > 0,
            top_logprobs=s.top_logprobs,
            top_k=s.top_k,
            min_p=s.min_p,
            bias=s.logit_bias,
            banned=s.stop_token_ids if early and self._matcher is None else (),
            allowed=self._allowed,
            penalties=self._penalties() if self._penalised else None,
        )

    def targets(self, prompt: Sequence[int], start: int, end: int) -> tuple[int, ...]:
        """Prompt tokens whose log probability tokens [start, end) of the sequence should tell."""
        if not self.sampling.prompt_logprobs or min(end, len(prompt) - 1) <= self._scored:
            return ()  # also while the prompt is recomputed after a preemption
        return tuple(prompt[start + 1 : end + 1])

    def take_scores(self, start: int, scores: Sequence[float]) -> tuple[float, ...]:
        """Of the scores for the targets after ``start`` those that have not been reported before."""
        new = tuple(scores[max(0, self._scored - start) :])
        self._scored += len(new)
        return new

    def _mask(self) -> bytes:
        """Bits of what the grammar allows next, stop ids among them where they may come."""
        if self._matcher is None:
            return b""
        return self._matcher.allowed(self.sampling.stop_token_ids, self._num_output >= self.sampling.min_tokens)

    def _penalties(self) -> Penalties:
        s = self.sampling
        return Penalties(
            s.repetition_penalty,
            s.presence_penalty,
            s.frequency_penalty,
            self._prompt_ids,
            _int32(self._counts.keys()),
            _int32(self._counts.values()),
        )


@dataclass(frozen=True)
class StepResults:
    """What the ranks computed in a step, by request id; of ended requests too."""

    tokens: dict[str, int]
    logprobs: dict[str, float]
    likeliest: dict[str, TopLogprobs]
    scores: tuple[tuple[Request, int, tuple[float, ...]], ...]  # with the first token of the chunk they belong to


def step_results(batch: Batch, chunks: Sequence[ChunkPlan], done: Done) -> StepResults:
    """Deal the answers out to the requests; ``chunks`` are the batch's plans."""
    sampling = [chunk.request.id for chunk in batch if chunk.samples]
    left = iter(done.target_logprobs)
    scores = tuple(
        (chunk.request, chunk.start, tuple(islice(left, len(plan.targets))))
        for chunk, plan in zip(batch, chunks, strict=True)
        if plan.targets
    )
    likeliest = done.likeliest or [_NONE] * len(sampling)
    return StepResults(
        dict(zip(sampling, done.tokens, strict=True)),
        dict(zip(sampling, done.logprobs, strict=True)),
        {name: TopLogprobs(*found) for name, found in zip(sampling, likeliest, strict=True)},
        scores,
    )


_NONE: Likeliest = ((), ())


def _check(s: Sampling) -> None:
    """Values that would turn logits into no numbers; the front end refuses more, with better words."""
    if not (s.temperature == 0 or _MIN_TEMPERATURE <= s.temperature < math.inf):
        raise SamplingError(f"temperature {s.temperature} is neither 0 nor at least {_MIN_TEMPERATURE}")
    if not 0 < s.top_p <= 1 or not 0 <= s.min_p <= 1:
        raise SamplingError(f"top_p {s.top_p} must be in (0, 1] and min_p {s.min_p} in [0, 1]")
    if not 1 / _MAX_CHANGE <= s.repetition_penalty <= _MAX_CHANGE:
        raise SamplingError(
            f"repetition_penalty {s.repetition_penalty} must be within {1 / _MAX_CHANGE:g}..{_MAX_CHANGE:g}"
        )
    if not 0 <= s.top_logprobs <= MAX_TOP_LOGPROBS:
        raise SamplingError(f"top_logprobs {s.top_logprobs} must be in 0..{MAX_TOP_LOGPROBS}")
    if s.top_k < 0 or s.min_tokens < 0:
        raise SamplingError(f"top_k {s.top_k} and min_tokens {s.min_tokens} must be at least 0")
    for name in ("presence_penalty", "frequency_penalty"):
        if not abs(getattr(s, name)) <= _MAX_CHANGE:
            raise SamplingError(f"{name} {getattr(s, name)} must be within ±{_MAX_CHANGE:g}")
    for token, bias in s.logit_bias:
        if not abs(bias) <= _MAX_CHANGE:
            raise SamplingError(f"logit_bias {bias} of token {token} must be within ±{_MAX_CHANGE:g}")
    if s.grammar is not None and not s.stop_token_ids:
        raise SamplingError("a grammar needs a stop token to end with; drop ignore_eos or name stop token ids")
    if len(dict(s.logit_bias)) != len(s.logit_bias):
        raise SamplingError("logit_bias names a token id twice; give each id one bias")


def _int32(values: Iterable[int]) -> bytes:
    return array("i", values).tobytes()
