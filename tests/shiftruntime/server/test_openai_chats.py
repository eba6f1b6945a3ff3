"""Chats with OpenAI's own client: templates, calls of functions, thoughts and forms of the answer."""

from __future__ import annotations

import json
import re

import pytest
from helpers.chat_templates import QWEN3

from .openai_calls import NOW, USER, WEATHER, client_of


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
