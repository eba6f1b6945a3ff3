"""From a request's parameters and tokens to what the ranks are told, without a rank."""

from __future__ import annotations

import re
from array import array
from typing import Any

import pytest
from shiftcore.scheduler import Chunk, Request
from shiftruntime.engine.messages import Sampling, TopLogprobs
from shiftruntime.engine.samples import History, SamplingError, step_results
from shiftruntime.worker.messages import ChunkPlan, Done, Sample

PROMPT = (5, 9, 5, 2)


def sampling(**changes: Any) -> Sampling:
    return Sampling(**({"temperature": 1.0, "top_p": 1.0, "seed": 3, "max_tokens": 8} | changes))


def ints(packed: bytes) -> list[int]:
    return array("i", packed).tolist()


def request() -> Request:
    return Request("a", PROMPT, 8)


def test_default_parameters_carry_nothing() -> None:
    assert History(sampling(), PROMPT).sample(4) == Sample(1.0, 1.0, 3, 4)


def test_penalties_tell_each_id_once() -> None:
    history = History(sampling(repetition_penalty=1.2, frequency_penalty=0.5), PROMPT, [7, 7, 5])
    penalties = history.sample(7).penalties
    assert penalties is not None
    assert sorted(ints(penalties.prompt_ids)) == [2, 5, 9]
    counts = dict(zip(ints(penalties.output_ids), ints(penalties.output_counts), strict=True))
    assert counts == {7: 2, 5: 1}


def test_a_kept_history_tells_what_a_new_one_does() -> None:
    parameters = sampling(presence_penalty=0.3, min_tokens=2, stop_token_ids=(1, 4), logit_bias=((3, -1.0),))
    kept, tokens = History(parameters, PROMPT), list(PROMPT)
    for token in (7, 8, 7):
        kept.accept(token)
        tokens.append(token)
        assert kept.sample(len(tokens)) == History(parameters, PROMPT, tokens[len(PROMPT) :]).sample(len(tokens))


def test_stop_ids_are_banned_before_min_tokens() -> None:
    history = History(sampling(min_tokens=2, stop_token_ids=(1, 4)), PROMPT)
    banned = []
    for position in (4, 5, 6):
        banned.append(history.sample(position).banned)
        assert [history.sample(position + ahead).banned for ahead in (1, 2)] == [(1, 4) if position < 5 else (), ()]
        history.accept(8)
    assert banned == [(1, 4), (1, 4), ()]


@pytest.mark.parametrize(
    ("changes", "foreseeable"),
    [
        ({"min_tokens": 2, "stop_token_ids": (1,), "logit_bias": ((3, 1.0),), "prompt_logprobs": True}, True),
        ({"presence_penalty": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
    ],
)
def test_penalties_depend_on_the_token_before(changes: dict[str, Any], foreseeable: bool) -> None:
    assert History(sampling(**changes), PROMPT).foreseeable is foreseeable


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_prompt_logprobs_come_once_and_in_order(width: int) -> None:
    """In chunks of any width, also when the prompt is computed anew after a preemption."""
    history, reported = History(sampling(prompt_logprobs=True), PROMPT), []
    starts = list(range(0, len(PROMPT), width))
    for start in [*starts[:2], *starts, *starts]:
        end = min(start + width, len(PROMPT))
        targets = history.targets(PROMPT, start, end)
        assert targets == PROMPT[start + 1 : end + 1] or not targets
        reported += history.take_scores(start, [float(t) for t in range(start + 1, start + 1 + len(targets))])
    assert reported == [1.0, 2.0, 3.0]


def test_answers_are_dealt_out_in_batch_order() -> None:
    parameters = sampling(prompt_logprobs=True, top_logprobs=1)
    first, second = request(), Request("b", (1, 2, 3), 8)
    batch = (Chunk(first, 0, 4, True), Chunk(second, 0, 2, False))
    targets = [History(parameters, c.request.prompt).targets(c.request.prompt, c.start, c.end) for c in batch]
    plans = [
        ChunkPlan(tuple(c.request.prompt[: c.length]), c.start, (), targets=t)
        for c, t in zip(batch, targets, strict=True)
    ]
    assert targets == [(9, 5, 2), (2, 3)]
    done = Done(1, 0, (8,), (-0.5,), (-1.0, -2.0, -3.0, -4.0, -5.0), (((6,), (-0.1,)),))
    results = step_results(batch, plans, done)
    assert (results.tokens, results.logprobs) == ({"a": 8}, {"a": -0.5})
    assert results.likeliest == {"a": TopLogprobs((6,), (-0.1,))}
    assert results.scores == ((first, 0, (-1.0, -2.0, -3.0)), (second, 0, (-4.0, -5.0)))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": float("nan")},
        {"temperature": 1e-9},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": 1e300},
        {"top_logprobs": 21},
        {"top_k": -1},
        {"logit_bias": ((3, float("inf")),)},
        {"logit_bias": ((3, 1.0), (3, 2.0))},
    ],
)
def test_senseless_values_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(SamplingError, match=str(next(iter(changes))).split("_")[0]):
        History(sampling(**changes), PROMPT)


@pytest.mark.parametrize("penalty", [1e-308, 1e-31, 1e31])
def test_a_tiny_repetition_penalty_does_not_fail_the_ranks(penalty: float) -> None:
    """A logit over 1e-308 is infinite, which ranks take for a broken model: one request ended the pod."""
    with pytest.raises(SamplingError, match=f"repetition_penalty {re.escape(str(penalty))}"):
        History(sampling(repetition_penalty=penalty), PROMPT)
