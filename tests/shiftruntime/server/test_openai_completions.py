"""Completions with OpenAI's own client: text, choices, log probabilities, usage and stop strings."""

from __future__ import annotations

import openai
import pytest

from .openai_calls import client_of
from .waiting import eventually


async def test_the_stop_string_is_shown_when_asked_for(client):
    more = {"include_stop_str_in_output": True}
    answer = await client.completions.create(model="fake", prompt="a", max_tokens=40, stop="wo", extra_body=more)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello wo", "stop")


async def test_a_cache_salt_reaches_the_engine(client, pod):
    await client.completions.create(model="fake", prompt="a", extra_body={"cache_salt": "s", "tenant": "t"})
    assert (pod.engine.submitted[0].tenant, pod.engine.submitted[0].cache_salt) == ("t", "s")


async def test_a_completion_has_text_usage_and_how_it_went(client, pod):
    answer = await client.completions.create(model="fake", prompt="abc", max_tokens=40, seed=7, temperature=0.5)
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello world", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 12, 15)
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    assert answer.shift["choices"][0]["gear_share"] == {"tp2": 0.25, "sp2": 0.75}
    assert answer.shift["choices"][0]["queue_ms"] == 250
    assert answer.id == answer._request_id
    sampling = pod.engine.submitted[0].sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.5, 7, 40)


async def test_a_streamed_completion_adds_up_and_ends_with_usage(client):
    options = {"include_usage": True}
    stream = await client.completions.create(
        model="fake", prompt="abc", max_tokens=40, stream=True, stream_options=options
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "hello world"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 5, "text comes as it is made"


async def test_every_parameter_reaches_the_engine(client, pod):
    await client.completions.create(
        model="fake", prompt="abc", max_tokens=9, temperature=0.7, top_p=0.9, seed=5, stop=["zz"],
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"65": 3, "66": -2.5},
        extra_body={"top_k": 40, "min_p": 0.1, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [7],
                    "repetition_penalty": 1.1, "priority": -3, "tenant": "t1", "timeout_seconds": 15.0},
    )  # fmt: skip
    submit = pod.engine.submitted[0]
    assert (submit.tenant, submit.priority) == ("t1", -3)
    assert 10 < submit.timeout_seconds <= 15
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.9, 40, 0.1)
    assert (sampling.seed, sampling.max_tokens, sampling.min_tokens) == (5, 9, 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.1)
    assert sampling.logit_bias == ((65, 3.0), (66, -2.5))
    assert sampling.stop_token_ids == (7,), "ignore_eos leaves only the asked ones"


async def test_the_tenant_of_the_gateway_wins(client, pod):
    await client.completions.create(
        model="fake", prompt="abc", extra_body={"tenant": "mine"}, extra_headers={"X-Shift-Tenant": "theirs"}
    )
    assert pod.engine.submitted[0].tenant == "theirs"


async def test_a_completion_defaults_to_16_tokens_as_openai_says(client, pod):
    await client.completions.create(model="fake", prompt="abc")
    assert pod.engine.submitted[0].sampling.max_tokens == 16


async def test_several_prompts_and_choices_have_their_indices(client, pod):
    prompts = ["abc", "defg"]
    answer = await client.completions.create(model="fake", prompt=prompts, n=2, max_tokens=40)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {"hello world"}
    assert answer.usage.prompt_tokens == 7
    assert answer.usage.completion_tokens == 48
    stream = await client.completions.create(model="fake", prompt=prompts, n=2, max_tokens=40, stream=True)
    texts = [""] * 4
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["hello world"] * 4
    assert sorted({submit.prompt for submit in pod.engine.submitted}) == [tuple(b"abc"), tuple(b"defg")]


async def test_a_refused_prompt_ends_the_others(client, pod):
    with pytest.raises(openai.BadRequestError, match="prompt has 99 tokens"):
        await client.completions.create(model="fake", prompt=["abc", "x" * 99])
    await eventually(lambda: not pod.engine.running)


async def test_prompts_may_be_token_ids(client, pod):
    await client.completions.create(model="fake", prompt=[65, 66])
    await client.completions.create(model="fake", prompt=[[67], [68, 69]])
    assert sorted(submit.prompt for submit in pod.engine.submitted) == [(65, 66), (67,), (68, 69)]


async def test_echo_and_logprobs_have_columns(client):
    answer = await client.completions.create(model="fake", prompt="ab", max_tokens=2, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text == "abhe"
    assert choice.logprobs.tokens == ["a", "b", "h", "e"]
    assert choice.logprobs.token_logprobs == [None, -1.5, -0.5, -0.5]
    assert choice.logprobs.top_logprobs == [None, None, {"h": -0.5, "i": -1.0}, {"e": -0.5, "f": -1.0}]
    assert choice.logprobs.text_offset == [0, 1, 2, 3]


async def test_echoed_logprobs_are_whole_for_every_choice(client):
    asked = {"model": "fake", "prompt": ["ab", "xyz"], "max_tokens": 2, "n": 2, "echo": True, "logprobs": 0}
    answer = await client.completions.create(**asked)
    offsets = [choice.logprobs.text_offset for choice in answer.choices]
    assert offsets == [[0, 1, 2, 3]] * 2 + [[0, 1, 2, 3, 4]] * 2
    scores = [choice.logprobs.token_logprobs for choice in answer.choices]
    assert scores == [[None, -1.5, -0.5, -0.5]] * 2 + [[None, -1.5, -1.5, -0.5, -0.5]] * 2
    assert [choice.text for choice in answer.choices] == ["abhe"] * 2 + ["xyzhe"] * 2


async def test_usage_runs_along_when_asked_for(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.completions.create(
        model="fake", prompt="abc", max_tokens=40, n=2, stream=True, stream_options=options
    )
    seen = [(chunk.usage.prompt_tokens, chunk.usage.completion_tokens) async for chunk in stream]
    assert {prompt for prompt, _ in seen} == {3}
    counts = [completion for _, completion in seen]
    assert counts[0] in (1, 2)
    assert counts == sorted(counts)
    assert counts[-1] == 24


async def test_a_prompt_alone_can_be_scored(client):
    answer = await client.completions.create(model="fake", prompt="abc", max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].logprobs.token_logprobs == [None, -1.5, -1.5]


async def test_logprobs_write_parts_of_characters_as_bytes(start_pod):
    pod = await start_pod(configure=lambda engine: setattr(engine, "reply", "ß".encode()))
    async with client_of(pod) as client:
        answer = await client.completions.create(model="fake", prompt="a", max_tokens=20, logprobs=0)
    assert answer.choices[0].text == "ß"
    assert answer.choices[0].logprobs.tokens == ["bytes:\\xc3", "bytes:\\x9f", "</s>"]


async def test_a_stop_string_cuts_the_text_and_ends_the_engine(client, pod):
    answer = await client.completions.create(model="fake", prompt="a", max_tokens=40, stop="o w")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hell", "stop")
    assert pod.engine.aborted
    answer = await client.completions.create(model="fake", prompt="a", max_tokens=4)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hell", "length")
