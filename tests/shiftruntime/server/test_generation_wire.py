"""Between shiftparallel.v1 and a generation: every field arrives, deadlines are the earlier of two, trailers add up."""

from __future__ import annotations

import math
from typing import Any

import pytest
from shiftprotos.v1 import inference_pb2 as pb
from shiftruntime.engine.messages import Finish, Grammar, TopLogprobs
from shiftruntime.server.deadlines import Deadlines
from shiftruntime.server.generation_wire import generation_from_wire, response_to_wire, trailers
from shiftruntime.server.limits import ServerLimits
from shiftruntime.server.request import Delta, Generation, Journey, Options, Usage
from shiftruntime.server.trace_context import TraceContext

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_an_empty_request_asks_for_nothing():
    assert generation_from_wire(pb.GenerateRequest()) == Generation(None)


def test_every_field_of_a_request_arrives():
    sampling: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.25, "seed": 2**64 - 1, "max_tokens": 20,
        "min_tokens": 3, "stop": ["a", "b"], "stop_token_ids": [9], "ignore_eos": True, "logprobs": True,
        "top_logprobs": 4, "prompt_logprobs": True, "n": 2, "repetition_penalty": 1.5, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "logit_bias": {8: -100.0},
    }  # fmt: skip
    request = pb.GenerateRequest(
        request_id="r", model="m", tokens=pb.TokenIds(ids=[1, 2]), sampling=pb.SamplingParams(**sampling, regex="a+"),
        priority=-5, tenant="t", timeout_seconds=2.5, echo=True, add_special_tokens=False,
    )  # fmt: skip
    options = Options(**(sampling | {"stop": ("a", "b"), "stop_token_ids": (9,)}), grammar=Grammar("regex", "a+"))
    assert generation_from_wire(request) == Generation(
        (1, 2), options, request_id="r", model="m", tenant="t", priority=-5, timeout_seconds=2.5, echo=True,
        add_special_tokens=False,
    )  # fmt: skip
    known = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert known == {*sampling, "json_schema", "json_object", "regex"}, "a field that this test does not set"


def test_zeros_that_were_set_are_not_defaults():
    request = pb.GenerateRequest(text="", sampling=pb.SamplingParams(temperature=0, top_k=0, min_tokens=0, n=0))
    asked = generation_from_wire(request)
    assert asked.prompt == ""
    assert (asked.options.temperature, asked.options.top_k, asked.options.min_tokens, asked.options.n) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("params", "grammar"),
    [
        (pb.SamplingParams(json_schema='{"type": "object"}'), Grammar("json_schema", '{"type": "object"}')),
        (pb.SamplingParams(json_object=pb.JsonObject()), Grammar("json_object", "")),
        (pb.SamplingParams(regex="[ab]"), Grammar("regex", "[ab]")),
        (pb.SamplingParams(), None),
    ],
)
def test_response_formats(params, grammar):
    assert generation_from_wire(pb.GenerateRequest(text="x", sampling=params)).options.grammar == grammar


@pytest.mark.parametrize(
    ("timeout", "deadline", "expected"),
    [(None, None, 3600), (2, None, 2), (None, 3, 3), (2, 3, 2), (4, 3, 3), (None, math.inf, 3600), (None, 0, 0)],
)
def test_the_earliest_deadline_counts(timeout, deadline, expected):
    asked = generation_from_wire(pb.GenerateRequest(timeout_seconds=timeout), deadline)
    assert Deadlines.of(asked, ServerLimits(), arrived=1000.0).end == 1000 + expected


def test_a_delta_becomes_a_message():
    delta = Delta(
        "r", 1, text="ab", token_ids=(5, 6), logprobs=(-0.5, -1.0),
        top_logprobs=(TopLogprobs((5, 7), (-0.5, -2.0)), TopLogprobs((6,), (-1.0,))),
        prompt_tokens=2, prompt_token_ids=(1, 2), prompt_logprobs=(-3.0,),
        finish=Finish.LENGTH, usage=Usage(2, 2, 1), journey=Journey(0.25, 0.5, {"tp2": 3}),
    )  # fmt: skip
    assert response_to_wire(delta) == pb.GenerateResponse(
        request_id="r", index=1, text="ab", token_ids=[5, 6], logprobs=[-0.5, -1.0],
        top_logprobs=[
            pb.TopLogprobs(token_ids=[5, 7], logprobs=[-0.5, -2.0]), pb.TopLogprobs(token_ids=[6], logprobs=[-1.0]),
        ],
        prompt_token_ids=[1, 2], prompt_logprobs=[-3.0], finish_reason=pb.FINISH_REASON_LENGTH,
        usage=pb.Usage(prompt_tokens=2, completion_tokens=2, cached_tokens=1),
        journey=pb.Journey(queue_seconds=0.25, ttft_seconds=0.5, gear_tokens={"tp2": 3}),
    )  # fmt: skip


def test_trailers_tell_of_all_choices():
    first = Delta("r", 0, usage=Usage(8, 2, 16), journey=Journey(0.0125, 0.5, {"tp2": 3, "sp2": 3}))
    second = Delta("r", 1, usage=Usage(8, 2, 24), journey=Journey(0.0625, 0.25, {"tp2": 2}))
    assert dict(trailers([second, first])) == {
        "shift-gear-share": "sp2=0.375,tp2=0.625",
        "shift-queue-ms": "12.5",
        "shift-ttft-ms": "250.0",
        "shift-cached-tokens": "16",
    }


def test_no_journey_no_trailers():
    assert trailers([Delta("r", 0)]) == ()


def test_a_trace_context_is_read():
    trace = TraceContext.parse(TRACEPARENT)
    assert trace == TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", TRACEPARENT)
    assert TraceContext.parse(TRACEPARENT.replace("00-", "cc-", 1) + "-what-the-future-brings") is not None


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "00",
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
        TRACEPARENT.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        TRACEPARENT[:-1],
        TRACEPARENT + "\n",
    ],
)
def test_an_invalid_trace_context_is_ignored(wrong):
    assert TraceContext.parse(wrong) is None
