"""OpenAI's routes with OpenAI's own client, against a pod with a stand-in engine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from helpers.chat_templates import QWEN3
from shiftruntime.engine.client import RequestRefused
from shiftruntime.server.app import serve
from shiftruntime.server.openai import listener, protocol, refused_fields
from shiftruntime.server.openai.errors import HttpError
from shiftruntime.server.openai.protocol import ChatRequest, CompletionRequest
from shiftruntime.server.openai.sampling import chat_options, completion_options
from shiftruntime.server.refusal import Refusal

USER = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def client_of(pod: Any, **options: Any) -> openai.AsyncOpenAI:
    values = {"api_key": "none", "max_retries": 0, "timeout": 20.0} | options
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{pod.ports.openai}/v1", **values)


@pytest.fixture
async def client(pod) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(pod) as made:
        yield made


async def raw(pod: Any, method: str, path: str, body: bytes | dict[str, Any] | None = None, **headers: str):
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    url = f"http://127.0.0.1:{pod.ports.openai}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, data=data, headers=headers) as answer:
        return answer.status, dict(answer.headers), await answer.text()


async def until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.005)


COMPLETIONS_ONLY = {"max_completion_tokens", "tools", "tool_choice", "top_logprobs"}


@pytest.mark.parametrize("name", sorted(refused_fields.REFUSED))
def test_every_field_that_would_change_the_answer_is_refused_by_name(name):
    kind = CompletionRequest if name in COMPLETIONS_ONLY else ChatRequest
    with pytest.raises(HttpError, match=rf"^{name}: .*; ") as caught:
        protocol.read(json.dumps({"messages": USER, "prompt": "x", name: {"any": 1}}).encode(), kind)
    assert (caught.value.status, caught.value.param, caught.value.reason) == (400, name, "Unsupported")


@pytest.mark.parametrize(
    "harmless",
    [{"detokenize": True}, {"return_token_ids": False}, {"suffix": ""}, {"length_penalty": 1.0}, {"bad_words": []}],
)
def test_a_default_that_is_written_out_is_no_request(harmless):
    assert protocol.read(json.dumps({"prompt": "x"} | harmless).encode(), CompletionRequest).prompt == "x"


@pytest.mark.parametrize("value", [{"detokenize": False}, {"length_penalty": 1.5}, {"prompt_logprobs": 0}])
def test_a_value_that_asks_for_something_is_refused(value):
    with pytest.raises(HttpError, match=next(iter(value))):
        protocol.read(json.dumps({"prompt": "x"} | value).encode(), CompletionRequest)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"guided_json": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"guided_json": '{"type": "object"}'}, {"json": '{"type": "object"}'}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_json_object": True}, {"json_object": True}),
    ],
)
def test_guided_fields_are_structured_outputs(older, newer):
    both = [json.dumps({"prompt": "x"} | body).encode() for body in (older, {"structured_outputs": newer})]
    grammars = [completion_options(protocol.read(body, CompletionRequest)).grammar for body in both]
    assert grammars[0] == grammars[1] is not None
    with pytest.raises(HttpError, match="exclude each other"):
        protocol.read(json.dumps({"prompt": "x", "structured_outputs": newer} | older).encode(), CompletionRequest)


def test_two_guided_fields_are_one_too_many():
    body = protocol.read(b'{"prompt": "x", "guided_regex": "a", "guided_choice": ["c"]}', CompletionRequest)
    with pytest.raises(HttpError, match="structured_outputs has 2"):
        completion_options(body)


async def test_the_stop_string_is_shown_when_asked_for(client):
    more = {"include_stop_str_in_output": True}
    answer = await client.completions.create(model="fake", prompt="a", max_tokens=40, stop="wo", extra_body=more)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello wo", "stop")


async def test_a_cache_salt_reaches_the_engine(client, pod):
    await client.completions.create(model="fake", prompt="a", extra_body={"cache_salt": "s", "tenant": "t"})
    assert (pod.engine.submitted[0].tenant, pod.engine.submitted[0].cache_salt) == ("t", "s")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_trace_context_goes_back(pod, path, stream):
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    body = {"messages": USER} if "chat" in path else {"prompt": "hi"}
    status, headers, _ = await raw(pod, "POST", path, body | {"stream": stream}, traceparent=trace)
    assert (status, headers["traceparent"]) == (200, trace)
    _, headers, _ = await raw(pod, "POST", path, body | {"stream": stream}, traceparent="00-nonsense")
    assert "traceparent" not in headers


# --- completions ---------------------------------------------------------------------------------------------------


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
    await until(lambda: not pod.engine.running)


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


# --- chats ---------------------------------------------------------------------------------------------------------


async def test_a_chat_is_rendered_by_the_template(client, pod):
    messages = [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    answer = await client.chat.completions.create(model="fake", messages=messages, max_completion_tokens=40)
    assert answer.object == "chat.completion"
    assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", "hello world")
    assert answer.choices[0].finish_reason == "stop"
    assert bytes(pod.engine.submitted[0].prompt) == b"s:brief|u:hi|"


async def test_a_streamed_chat_adds_up(client):
    stream = await client.chat.completions.create(
        model="fake", messages=USER, stream=True, n=2, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    texts, roles, finish = ["", ""], ["", ""], ["", ""]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role or ""
        finish[choice.index] += choice.finish_reason or ""
    assert (texts, roles, finish) == (["hello world"] * 2, ["assistant"] * 2, ["stop"] * 2)
    assert chunks[-1].usage.completion_tokens == 24


async def test_chat_logprobs_name_tokens_and_alternatives(client):
    answer = await client.chat.completions.create(
        model="fake", messages=USER, max_tokens=2, logprobs=True, top_logprobs=2
    )
    first = answer.choices[0].logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("h", -0.5, [104])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("h", -0.5), ("i", -1.0)]
    stream = await client.chat.completions.create(model="fake", messages=USER, max_tokens=2, logprobs=True, stream=True)
    found = [e.token async for chunk in stream if chunk.choices[0].logprobs for e in chunk.choices[0].logprobs.content]
    assert found == ["h", "e"]


CALL = b'[{"name": "weather", "parameters": {"city": "Bonn"}}]'


HERMES = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson }}<tool_call></tool_call><think></think>"


async def test_a_call_of_a_function_is_parsed(chat_pod):
    pod = await chat_pod("{{ tools | length }}", b"[now()]")
    async with client_of(pod) as client:
        answer = await client.chat.completions.create(model="fake", messages=USER, tools=[NOW])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "now", "{}")
    assert re.fullmatch("[a-zA-Z0-9]{9}", call.id)


async def test_streamed_calls_arrive_piece_by_piece(chat_pod):
    reply = b'<think>\nhm\n</think>\nSure. <tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
    pod = await chat_pod(HERMES, reply + b'\n<tool_call>{"name": "now"}</tool_call>')
    async with client_of(pod) as client:
        asked = {"model": "fake", "messages": USER, "tools": [WEATHER, NOW]}
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
        one = await client.chat.completions.create(**asked, parallel_tool_calls=False)
    message = whole.choices[0].message
    assert (message.reasoning_content, message.content) == ("hm", "Sure.")
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    assert calls == [("weather", '{"city": "Bonn"}'), ("now", "{}")]
    assert "".join(delta.content or "" for delta in deltas) == "Sure."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm"
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    assert [call.function.name for call in pieces if call.id] == ["weather", "now"]
    assert "".join(call.function.arguments for call in pieces if call.index == 0) == '{"city": "Bonn"}'
    assert len(pieces) > 6
    assert len(one.choices[0].message.tool_calls) == 1


async def test_a_continued_message_ends_the_prompt(chat_pod):
    pod = await chat_pod(QWEN3, b"nd so on.")
    async with client_of(pod) as client:
        begun = [*USER, {"role": "assistant", "content": "A"}]
        await client.chat.completions.create(model="fake", messages=begun, extra_body={"continue_final_message": True})
    assert bytes(pod.engine.submitted[0].prompt).endswith(b"<|im_start|>assistant\nA")


async def test_a_required_call_is_made_by_a_grammar(chat_pod):
    pod = await chat_pod(HERMES, CALL)
    async with client_of(pod) as client:
        asked = {"model": "fake", "messages": USER, "tools": [WEATHER, NOW]}
        answer = await client.chat.completions.create(**asked, tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    grammar = pod.engine.submitted[0].sampling.grammar
    assert grammar.kind == "json_schema"
    schema = json.loads(grammar.text)
    assert schema["minItems"] == 1
    assert [each["properties"]["name"]["enum"] for each in schema["items"]["anyOf"]] == [["weather"], ["now"]]
    assert schema["items"]["anyOf"][0]["properties"]["parameters"] == WEATHER["function"]["parameters"]


async def test_a_named_call_has_the_functions_own_grammar(chat_pod):
    pod = await chat_pod(HERMES, b'{"city": "Bonn"}')
    async with client_of(pod) as client:
        named = {"type": "function", "function": {"name": "weather"}}
        answer = await client.chat.completions.create(
            model="fake", messages=USER, tools=[WEATHER, NOW], tool_choice=named
        )
    assert answer.choices[0].finish_reason == "stop"
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Bonn"}')
    assert json.loads(pod.engine.submitted[0].sampling.grammar.text) == WEATHER["function"]["parameters"]


async def test_tool_choice_none_tells_the_model_of_no_tools(chat_pod):
    pod = await chat_pod(HERMES, b"<tool_call>{}")
    async with client_of(pod) as client:
        answer = await client.chat.completions.create(model="fake", messages=USER, tools=[NOW], tool_choice="none")
    assert answer.choices[0].message.content == "<tool_call>{}"
    assert b"now" not in bytes(pod.engine.submitted[0].prompt)


async def test_a_template_without_tools_has_them_described(chat_pod):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    pod = await chat_pod(template, CALL)
    past = [
        *USER,
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    async with client_of(pod) as client:
        answer = await client.chat.completions.create(model="fake", messages=past, tools=[WEATHER, NOW])
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Bonn"}'
    prompt = bytes(pod.engine.submitted[0].prompt).decode()
    assert prompt.startswith("system: You can call functions.")
    assert '{"name": "weather"' in prompt
    assert 'assistant: [{"name": "now", "parameters": {}}]' in prompt
    assert "user: ```tool_output\nnoon\n```" in prompt


@pytest.mark.parametrize(
    ("kind", "splits"), [(None, True), ("text", True), ("json_object", False), ("json_schema", False)]
)
async def test_thoughts_are_told_apart_unless_a_grammar_leaves_no_room(chat_pod, kind: str | None, splits: bool):
    pod = await chat_pod(HERMES, b"<think>hm</think>4")
    schema = {"json_schema": {"name": "x", "schema": {}}} if kind == "json_schema" else {}
    asked = {"response_format": {"type": kind, **schema}} if kind else {}
    async with client_of(pod) as client:
        answer = await client.chat.completions.create(model="fake", messages=USER, **asked)
    message = answer.choices[0].message
    found = (getattr(message, "reasoning_content", None), message.content)
    assert found == (("hm", "4") if splits else (None, "<think>hm</think>4"))


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}},
            "json_schema",
            '{"type": "array"}',
        ),
        ({"extra_body": {"structured_outputs": {"regex": "a+"}}}, "regex", "a+"),
        ({"extra_body": {"structured_outputs": {"choice": ["a.b", "c"]}}}, "regex", r"(a\.b)|(c)"),
        ({"extra_body": {"structured_outputs": {"json": {"type": "null"}}}}, "json_schema", '{"type": "null"}'),
    ],
)
async def test_the_form_of_an_answer_becomes_a_grammar(client, pod, asked, kind, text):
    await client.chat.completions.create(model="fake", messages=USER, **asked)
    grammar = pod.engine.submitted[0].sampling.grammar
    assert (grammar.kind, grammar.text) == (kind, text)


# --- other routes --------------------------------------------------------------------------------------------------


async def test_the_model_is_listed(client):
    (model,) = (await client.models.list()).data
    assert (model.id, model.owned_by, model.max_model_len) == ("fake", "shift", 64)
    assert (await client.models.retrieve("fake")).id == "fake"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_text_becomes_tokens_and_back(pod):
    status, _, text = await raw(pod, "POST", "/tokenize", {"prompt": "ab", "return_token_strs": True})
    wanted = {"count": 2, "max_model_len": 64, "tokens": [97, 98], "token_strs": ["a", "b"]}
    assert (status, json.loads(text)) == (200, wanted)
    status, _, text = await raw(pod, "POST", "/tokenize", {"messages": USER})
    assert bytes(json.loads(text)["tokens"]) == b"u:hi|"
    status, _, text = await raw(pod, "POST", "/detokenize", {"tokens": [104, 105]})
    assert (status, json.loads(text)) == (200, {"prompt": "hi"})
    assert (await raw(pod, "POST", "/detokenize", {"tokens": [-1]}))[0] == 400
    assert (await raw(pod, "POST", "/tokenize", {}))[0] == 400


async def test_health_and_version(pod):
    assert (await raw(pod, "GET", "/health"))[0] == 200
    status, _, text = await raw(pod, "GET", "/version")
    assert (status, set(json.loads(text))) == (200, {"version"})


# --- errors --------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"n": 0}, "n 0"),
    ({"n": 1000}, "n 1000"),
    ({"stop": [""]}, "stop string"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"word": 1}}, "logit_bias"),
    ({"max_tokens": "many"}, r"got `str` - at `\$\.max_tokens`"),
    ({"messages": []}, "messages has 0 entries"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
    ({"messages": [{"role": "user"}]}, "has no content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "images"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "audio"),
    ({"messages": [{"role": "user", "content": [{"type": "strange"}]}]}, "strange"),
    ({"top_logprobs": 2}, "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs 21"),
    ({"tool_choice": "required"}, "needs tools"),
    ({"tools": [NOW, NOW]}, "same name"),
    ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among the tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "function name"),
    ({"tools": [NOW], "tool_choice": "required", "response_format": {"type": "json_object"}}, "exclude each other"),
    ({"response_format": {"type": "json_schema"}}, r"json_schema\.schema"),
    ({"structured_outputs": {}}, "0 of json"),
    ({"best_of": 3}, "best_of 3 is not supported"),
    ({"suffix": "x"}, "suffix"),
    ({"echo": True}, "chats have no echo"),
    ({"functions": [{"name": "f"}]}, "use tools"),
    ({"use_beam_search": True}, "beam search"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"lora_request": {"lora_name": "x"}}, "LoRA"),
    ({"prediction": {"type": "content", "content": "x"}}, "speculative"),
    ({"chat_template": "x"}, "--chat-template"),
    ({"chat_template_kwargs": {"messages": []}}, "cannot be given"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "exclude each other; leave one"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$defs": []}}}],
      "tool_choice": "required"}, "no object of definitions"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[words for _, words in WRONG])
async def test_what_cannot_be_is_refused_by_name(client, pod, fields, words):
    messages = fields.get("messages", USER)
    rest = {name: value for name, value in fields.items() if name != "messages"}
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        await client.chat.completions.create(model="fake", messages=messages, extra_body=rest)
    assert caught.value.body["type"] == "invalid_request_error"
    assert caught.value.body["code"]
    assert not pod.engine.submitted


@pytest.mark.parametrize("n", [0, 33, 2**62])
def test_a_huge_n_is_refused_before_an_answer_with_room_for_it_is_made(n):
    with pytest.raises(Refusal, match=f"n {n} is outside 1..32"):
        chat_options(ChatRequest(messages=[], n=n), None)
    with pytest.raises(Refusal, match=f"n {n} is outside 1..32"):
        completion_options(CompletionRequest(prompt="x", n=n))


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', "[" * 100_000], ids=["half a pair", "deep"])
async def test_arguments_that_no_template_could_write_are_refused_and_not_an_error_of_ours(client, arguments):
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    with pytest.raises(openai.BadRequestError, match="arguments of 'f' are no JSON"):
        await client.chat.completions.create(model="fake", messages=[{"role": "assistant", "tool_calls": calls}])


async def test_unknown_fields_are_ignored_and_named_once(client, caplog, monkeypatch):
    monkeypatch.setattr(protocol, "_seen_unknown", set())
    for _ in range(2):
        body = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "field_of_2031": None}
        await client.chat.completions.create(model="fake", messages=USER, extra_body=body)
    lines = [record.getMessage() for record in caplog.records if "ignores" in record.getMessage()]
    (line,) = lines
    assert "'metadata', 'service_tier', 'store'" in line
    assert "field_of_2031" not in line, "null is not given"


def test_names_of_unknown_fields_neither_forge_log_lines_nor_fill_the_memory(caplog, monkeypatch):
    monkeypatch.setattr(protocol, "_seen_unknown", set())
    protocol.read(json.dumps({"prompt": "x"} | {f"\nERROR {i}": 1 for i in range(1000)}).encode(), CompletionRequest)
    assert len(protocol._seen_unknown) == protocol.MAX_UNKNOWN_NAMES
    (record,) = caplog.records
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": ' + b"[" * 10000, b'{"messages": 1}'])
async def test_a_body_that_is_no_request_is_an_error_object(pod, body):
    status, headers, text = await raw(pod, "POST", "/v1/chat/completions", body)
    assert (status, headers["Content-Type"].split(";")[0]) == (400, "application/json")
    assert json.loads(text)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nothing", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/responses", 404),
    ],
)
async def test_other_paths_are_error_objects(pod, method, path, status):
    found, _, text = await raw(pod, method, path)
    assert (found, "error" in json.loads(text)) == (status, True)


@pytest.mark.parametrize(
    ("reason", "error", "status", "retry"),
    [
        ("QueueFull", openai.RateLimitError, 429, "1"),
        ("Draining", openai.InternalServerError, 503, "1"),
        ("InvalidRequest", openai.BadRequestError, 400, None),
    ],
)
async def test_a_refusal_of_the_engine_has_its_status(start_pod, reason, error, status, retry):
    pod = await start_pod(configure=lambda engine: setattr(engine, "refusal", RequestRefused(reason, "because")))
    async with client_of(pod) as client:
        for stream in (False, True):
            with pytest.raises(error, match="because") as caught:
                await client.completions.create(model="fake", prompt="x", stream=stream)
            assert caught.value.status_code == status
            assert caught.value.body["code"] == reason
            assert caught.value.response.headers.get("retry-after") == retry


async def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="'fake'"):
        await client.completions.create(model="gpt-4", prompt="x")


async def test_a_deadline_is_a_timeout_of_the_gateway(client, pod):
    pod.engine.flow.clear()
    with pytest.raises(openai.InternalServerError) as caught:
        await client.completions.create(model="fake", prompt="x", extra_body={"timeout_seconds": 0.1})
    assert caught.value.status_code == 504
    pod.engine.flow.set()
    await until(lambda: not pod.engine.running)


async def test_a_failure_inside_a_stream_is_an_event(client, pod):
    stream = await client.completions.create(model="fake", prompt="x", max_tokens=20, stream=True)
    await anext(aiter(stream))
    pod.engine.flow.clear()
    pod.engine.die("rank 1 was killed")
    with pytest.raises(openai.APIError, match="rank 1 was killed") as caught:
        async for _ in stream:
            pass
    assert caught.value.body["code"] == "RankFailed"
    assert await pod.exit_code() == 1


async def test_a_pod_that_starts_says_so(start_pod):
    pod = await start_pod(configure=lambda engine: engine.may_start.clear(), ready=False)
    status, headers, _ = await raw(pod, "GET", "/health")
    assert (status, headers["Connection"]) == (503, "close")
    status, headers, text = await raw(pod, "POST", "/v1/completions", {"prompt": "x"})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert json.loads(text)["error"]["code"] == "Starting"
    pod.engine.may_start.set()


# --- clients that leave, many clients, the end ---------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_request(pod, stream):
    pod.engine.flow.clear()
    body = json.dumps({"prompt": "x", "stream": stream, "n": 2}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.openai)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await until(lambda: len(pod.engine.running) == 2)
    if stream:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await until(lambda: len(pod.engine.aborted) == 2)
    await until(lambda: not pod.engine.running)


async def test_fifty_clients_at_once_get_their_own_answers(pod):
    async with client_of(pod) as client:

        async def one(number: int) -> int:
            stream = await client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": str(number)}],
                max_tokens=number % 11 + 1,
                stream=True,
            )
            return len("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

        lengths = await asyncio.gather(*(one(number) for number in range(50)))
    assert lengths == [number % 11 + 1 for number in range(50)]
    assert {bytes(submit.prompt) for submit in pod.engine.submitted} == {b"u:%d|" % number for number in range(50)}


async def test_a_drain_lets_streams_end_and_takes_no_new_ones(pod):
    async with client_of(pod) as client, client_of(pod) as other:
        pod.engine.flow.clear()
        stream = await client.completions.create(model="fake", prompt="x", max_tokens=40, stream=True)
        await other.models.list()
        pod.terminate()
        await until(lambda: pod.engine.draining)
        with pytest.raises(openai.InternalServerError, match="drains") as caught:
            await other.completions.create(model="fake", prompt="y")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["connection"] == "close"
        pod.engine.flow.set()
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "hello world"
    assert await pod.exit_code() == 0


async def test_a_drain_closes_connections_that_are_idle(pod):
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.openai)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")
    pod.engine.flow.clear()
    holder = asyncio.create_task(raw(pod, "POST", "/v1/completions", {"prompt": "x"}))
    await until(lambda: pod.engine.running)
    pod.terminate()
    assert await asyncio.wait_for(reader.read(), 5) == b"", "closed while a request still runs"
    assert not holder.done()
    pod.engine.flow.set()
    assert (await holder)[0] == 200
    writer.close()


async def test_a_stream_that_outlives_the_drain_ends_with_the_reason(start_pod):
    pod = await start_pod(drain_seconds=0.3)
    async with client_of(pod) as client:
        pod.engine.flow.clear()
        stream = await client.completions.create(model="fake", prompt="x", stream=True)
        pod.terminate()
        with pytest.raises(openai.APIError, match=r"drained for 0\.3 s"):
            async for _ in stream:
                pass
    assert await pod.exit_code() == 0


# --- limits and keys -----------------------------------------------------------------------------------------------


async def test_a_large_body_is_refused(start_pod, serve_options):
    pod = await start_pod(limits=replace(serve_options.limits, message_bytes=2000))
    status, _, text = await raw(pod, "POST", "/v1/completions", {"prompt": "x" * 3000})
    assert (status, json.loads(text)["error"]["code"]) == (413, "BodyTooLarge")


async def test_large_headers_are_refused(pod):
    status, _, _ = await raw(pod, "GET", "/health", **dict[str, Any]({"X-Large": "x" * 40_000}))
    assert status == 400


async def test_a_connection_too_many_is_told(pod, monkeypatch):
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.ports.openai)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in await reader.readline()
    status, headers, text = await raw(pod, "GET", "/health")
    assert (status, headers["Retry-After"], json.loads(text)["error"]["code"]) == (503, "1", "QueueFull")
    writer.close()


async def test_keys_are_asked_for_and_may_change(start_pod, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst\n\nsecond\n")
    pod = await start_pod(api_key_file=keys)
    for key in ("first", "second"):
        async with client_of(pod, api_key=key) as client:
            assert (await client.completions.create(model="fake", prompt="x")).choices
    for key in ("third", "# ours", "firs", "schlüssel"):
        status, _, _ = await raw(pod, "POST", "/v1/completions", {"prompt": "x"}, Authorization=f"Bearer {key}")
        assert status == 401
    assert (await raw(pod, "GET", "/v1/models"))[0] == 401
    assert (await raw(pod, "GET", "/v1/models", Authorization="Basic first"))[0] == 401
    assert (await raw(pod, "GET", "/health"))[0] == 200
    keys.write_text("a-third-key")
    assert (await raw(pod, "GET", "/v1/models", Authorization="Bearer a-third-key"))[0] == 200
    assert (await raw(pod, "GET", "/v1/models", Authorization="Bearer first"))[0] == 401


async def test_an_empty_key_file_keeps_the_pod_from_starting(serve_options, fake_engine_class, fake_text, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# none\n")
    options = replace(serve_options, api_key_file=keys)
    assert await serve(options, fake_engine_class, lambda model: fake_text) == 1
    assert "has no key" in options.environment.termination_log.read_text()


async def test_no_port_no_routes(start_pod):
    pod = await start_pod(openai_port=None)
    assert pod.ports.openai is None
