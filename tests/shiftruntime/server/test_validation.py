"""What a generation may ask for: each refusal names value and limit, and what passes fills the engine's message."""

from __future__ import annotations

import math
from dataclasses import replace

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftruntime.engine.messages import Grammar, Sampling
from shiftruntime.models.generation_config import GenerationDefaults
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request import Generation, Options
from shiftruntime.server.validation import Limits, check_generation, resolve_sampling

LIMITS = Limits("m", vocab_size=300, max_prompt_tokens=63, max_model_len=64, eos_ids=(0,))
ADVISED = GenerationDefaults(
    temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1, max_new_tokens=9, stop_strings=("END",)
)


@pytest.mark.parametrize(
    ("options", "reason", "words"),
    [
        (Options(top_k=-1), "TopKInvalid", ["top_k -1", "0..2.14748e+09", "no limit"]),
        (Options(min_p=1.5), "MinPInvalid", ["min_p 1.5", "0..1"]),
        (Options(min_p=math.nan), "MinPInvalid", ["min_p nan", "0..1"]),
        (Options(repetition_penalty=0.0), "PenaltyInvalid", ["repetition_penalty 0.0", "(0, 100]"]),
        (Options(presence_penalty=2.1), "PenaltyInvalid", ["presence_penalty 2.1", "-2..2"]),
        (Options(frequency_penalty=-math.inf), "PenaltyInvalid", ["frequency_penalty -inf", "-2..2"]),
        (Options(n=0), "ChoicesInvalid", ["n 0", "1..32"]),
        (Options(n=33), "ChoicesInvalid", ["n 33", "1..32"]),
        (Options(top_logprobs=21), "LogprobsInvalid", ["top_logprobs 21", "0..20"]),
        (Options(logit_bias={300: 1.0}), "UnknownTokenId", ["logit_bias token id 300", "0..299"]),
        (Options(logit_bias={-1: 1.0}), "UnknownTokenId", ["logit_bias token id -1", "0..299"]),
        (Options(logit_bias={5: 101.0}), "LogitBiasInvalid", ["logit_bias of token 5: 101.0", "-100..100"]),
        (Options(logit_bias={5: math.nan}), "LogitBiasInvalid", ["nan", "-100..100"]),
        (Options(min_tokens=-1), "MinTokensInvalid", ["min_tokens -1", "below 0"]),
        (Options(max_tokens=0), "MaxTokensInvalid", ["max_tokens 0", "below 1", "prompt_logprobs"]),
        (Options(max_tokens=-3, prompt_logprobs=True), "MaxTokensInvalid", ["max_tokens -3"]),
        (Options(grammar=Grammar("regex", "é" * 2_049)), "GrammarInvalid", ["regex", "4098 bytes", "4096"]),
        (Options(grammar=Grammar("json_schema", "a" * 65_537)), "GrammarInvalid", ["json_schema", "65537", "65536"]),
    ],
)
def test_an_option_out_of_range_is_refused_with_value_and_limit(options, reason, words):
    with pytest.raises(Refusal) as caught:
        check_generation(Generation("x", options), LIMITS)
    refusal = caught.value
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [word for word in words if word not in refusal.message] == []


@pytest.mark.parametrize(
    ("generation", "reason", "words"),
    [
        (Generation("x", priority=1001), "PriorityInvalid", ["priority 1001", "-1000..1000"]),
        (Generation("x", tenant="t" * 129), "TenantInvalid", ["129 characters", "at most 128"]),
        (Generation("x", tenant="a\nb"), "TenantInvalid", ["'a\\nb'"]),
        (Generation("x", timeout_seconds=0.0), "TimeoutInvalid", ["timeout_seconds 0.0", "(0, 3600]"]),
        (Generation("x", timeout_seconds=math.nan), "TimeoutInvalid", ["nan", "(0, 3600]"]),
        (Generation("x", timeout_seconds=1e9), "TimeoutInvalid", ["1000000000.0", "(0, 3600]"]),
        (Generation(None), "PromptEmpty", ["no prompt"]),
    ],
)
def test_a_request_out_of_range_is_refused_with_value_and_limit(generation, reason, words):
    with pytest.raises(Refusal) as caught:
        check_generation(generation, LIMITS)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [word for word in words if word not in caught.value.message] == []


def test_too_many_logit_biases_are_refused():
    limits = replace(LIMITS, vocab_size=5000)
    with pytest.raises(Refusal, match="1025 logit biases; at most 1024"):
        check_generation(Generation("x", Options(logit_bias=dict.fromkeys(range(1025), 1.0))), limits)


def test_every_option_reaches_the_engine():
    options = Options(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.05, seed=11, max_tokens=20, min_tokens=3, stop_token_ids=(9,),
        logprobs=True, top_logprobs=4, prompt_logprobs=True, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=-0.4, logit_bias={8: -100.0, 7: 5.0}, grammar=Grammar("regex", "a+"),
    )  # fmt: skip
    check_generation(Generation("x", options), LIMITS)
    assert resolve_sampling(options, 10, LIMITS, drawn_seed=1) == Sampling(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.05, seed=11, max_tokens=20, min_tokens=3, stop_token_ids=(0, 9),
        logprobs=True, top_logprobs=4, prompt_logprobs=True, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=-0.4, logit_bias=((7, 5.0), (8, -100.0)), grammar=Grammar("regex", "a+"),
    )  # fmt: skip


def test_what_the_model_advises_holds_until_the_request_says_otherwise():
    limits = replace(LIMITS, defaults=ADVISED)
    advised = resolve_sampling(Options(), 10, limits, 1)
    assert (advised.temperature, advised.top_p, advised.top_k, advised.min_p) == (0.6, 0.9, 20, 0.1)
    assert (advised.repetition_penalty, advised.max_tokens) == (1.1, 9)
    said = Options(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, max_tokens=30)
    own = resolve_sampling(said, 10, limits, 1)
    assert (own.temperature, own.top_p, own.top_k, own.min_p) == (0.0, 1.0, 0, 0.0)
    assert (own.repetition_penalty, own.max_tokens) == (1.0, 30)


def test_siblings_draw_with_other_seeds_and_only_the_first_scores_the_prompt():
    options = Options(n=3, seed=2**63 - 1, prompt_logprobs=True)
    all_ = [resolve_sampling(options, 10, LIMITS, 1, index) for index in range(3)]
    assert [sampling.seed for sampling in all_] == [2**63 - 1, 0, 1]
    assert [sampling.prompt_logprobs for sampling in all_] == [True, False, False]


def test_more_tokens_than_fit_are_cut_but_min_tokens_that_do_not_fit_are_refused():
    assert resolve_sampling(Options(max_tokens=1000), 60, LIMITS, 1).max_tokens == 4
    with pytest.raises(Refusal, match="min_tokens 5 is above the 4 tokens"):
        resolve_sampling(Options(min_tokens=5), 60, LIMITS, 1)


def test_alternatives_imply_logprobs():
    assert resolve_sampling(Options(top_logprobs=1), 1, LIMITS, 1).logprobs


def test_a_top_k_of_the_whole_vocabulary_is_no_limit():
    assert resolve_sampling(Options(top_k=300), 1, LIMITS, 1).top_k == 0
    assert resolve_sampling(Options(top_k=299), 1, LIMITS, 1).top_k == 299


_NUMBERS = st.none() | st.floats() | st.integers(-(2**40), 2**40)
_WHOLE = st.none() | st.integers(-(2**70), 2**70)


@settings(deadline=None)
@given(
    st.builds(
        Options, temperature=_NUMBERS, top_p=_NUMBERS, top_k=_WHOLE, min_p=_NUMBERS, seed=_WHOLE, max_tokens=_WHOLE,
        min_tokens=_WHOLE, repetition_penalty=_NUMBERS, presence_penalty=_NUMBERS, frequency_penalty=_NUMBERS,
        n=st.integers(-2, 40), top_logprobs=st.integers(-2, 40),
        logit_bias=st.dictionaries(st.integers(-5, 400), st.floats(), max_size=3),
    )
)  # fmt: skip
def test_whatever_comes_is_refused_or_fits_the_engine(options):
    """Nothing but a Refusal, and nothing that the ranks could choke on."""
    try:
        check_generation(Generation("x", options), LIMITS)
        s = resolve_sampling(options, 10, LIMITS, 1)
    except Refusal:
        return
    assert 0 <= s.temperature <= 100
    assert 0 < s.top_p <= 1
    assert 0 <= s.top_k < LIMITS.vocab_size
    assert 0 <= s.min_p <= 1
    assert 0 <= s.seed < 2**63
    assert 0 <= s.min_tokens <= s.max_tokens <= 54
    assert s.repetition_penalty > 0
    assert all(0 <= token < 300 and abs(bias) <= 100 for token, bias in s.logit_bias)
