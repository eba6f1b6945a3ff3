"""A whole tool turn (call, result, answer) through templates with the checks of each family's published ones."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from helpers.chat_templates import GEMMA, GEMMA2, LLAMA3, MISTRAL, QWEN3
from shiftruntime.server.chat.template import ChatTemplates, TemplateSources
from shiftruntime.server.chat.tools import described, with_short_ids

USER = [{"role": "user", "content": "Weather in Bonn, and what time is it?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
BOTH = b'[{"name": "weather", "parameters": {"city": "Bonn"}}, {"name": "now", "parameters": {}}]'
FAMILIES = {
    "llama3": (LLAMA3, b'{"name": "weather", "parameters": {"city": "Bonn"}}'),
    "qwen3": (
        QWEN3,
        b'<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
        b'<tool_call>{"name": "now"}</tool_call>',
    ),
    "mistral": (
        MISTRAL,
        b'[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bonn"}}, {"name": "now", "arguments": {}}]',
    ),
    "gemma2": (GEMMA2, BOTH),
    "gemma3": (GEMMA, BOTH),
}
RESULTS = {"weather": "7 degrees", "now": "noon"}


@pytest.mark.parametrize(("template", "reply"), FAMILIES.values(), ids=FAMILIES)
async def test_a_call_its_result_and_the_answer(chat_pod, template, reply):
    pod = await chat_pod(template, reply)
    url = f"http://127.0.0.1:{pod.ports.openai}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        first = await client.chat.completions.create(model="fake", messages=USER, tools=TOOLS)
        assert first.choices[0].finish_reason == "tool_calls"
        message = first.choices[0].message
        assert message.tool_calls[0].function.arguments == '{"city": "Bonn"}'
        assert len(message.tool_calls) == (1 if template is LLAMA3 else 2)
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": RESULTS[call.function.name]}
            for call in message.tool_calls
        ]
        turns = [*USER, message.model_dump(exclude_none=True), *results]
        pod.engine.reply = b"Cold, at noon."
        second = await client.chat.completions.create(model="fake", messages=turns, tools=TOOLS)
        answer = {"role": "assistant", "content": second.choices[0].message.content}
        third = await client.chat.completions.create(model="fake", messages=[*turns, answer, *USER], tools=TOOLS)
    for later in (second, third):
        assert (later.choices[0].finish_reason, later.choices[0].message.content) == ("stop", "Cold, at noon.")
    prompt = bytes(pod.engine.submitted[1].prompt).decode()
    for name in [call.function.name for call in message.tool_calls]:
        assert RESULTS[name] in prompt
    assert "Weather in Bonn" in prompt
    assert "Cold, at noon." in bytes(pod.engine.submitted[2].prompt).decode()


async def test_ids_of_another_server_are_shortened_where_the_template_needs_it(chat_pod):
    pod = await chat_pod(MISTRAL, b"Cold.")
    url = f"http://127.0.0.1:{pod.ports.openai}/v1"
    call = {"id": "call_0123456789abcdef01234567", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    turns = [
        *USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "noon"},
    ]
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        answer = await client.chat.completions.create(model="fake", messages=turns, tools=TOOLS)
    assert answer.choices[0].message.content == "Cold."


def test_short_ids_still_belong_together() -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    turns: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [{**call, "id": "call_1"}, {**call, "id": "abcDEF123"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": "one"},
    ]
    calls, first, second = with_short_ids(turns)
    assert [each["id"] for each in calls["tool_calls"]] == [first["tool_call_id"], "abcDEF123"]
    assert second["tool_call_id"] == "abcDEF123"
    assert len(first["tool_call_id"]) == 9
    assert turns[1]["tool_call_id"] == "call_1", "what the client sent stays as it is"


@pytest.mark.parametrize(
    ("template", "shows"),
    [
        (GEMMA, True),
        (GEMMA2, False),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", True),
    ],
)
async def test_whether_a_template_shows_system_messages(template: str, shows: bool) -> None:
    found = ChatTemplates(TemplateSources({"default": template}, {"bos_token": ""}, "t.json"))
    assert await found.shows_system() is shows


def test_words_about_functions_go_where_the_template_shows_them() -> None:
    tools = [TOOLS[1]]
    (only,) = described(USER, tools, shows_system=False)
    assert only["role"] == "user"
    assert only["content"].startswith("You can call functions.")
    assert only["content"].endswith("\n\n" + USER[0]["content"])
    system, user = described([*SYSTEM, *USER], tools, shows_system=True)
    assert system["content"].startswith("Be brief.\n\nYou can call functions.")
    assert user == USER[0]
    system, user = described([*SYSTEM, *USER], tools, shows_system=False)
    assert system == SYSTEM[0], "the template says itself what it makes of it"
    assert "You can call functions." in user["content"]
    words, answer = described([{"role": "assistant", "content": "x"}], tools, shows_system=False)
    assert (words["role"], answer["content"]) == ("user", "x")


def test_results_that_follow_each_other_are_one_turn() -> None:
    turns = [
        *USER,
        *USER,
        {"role": "assistant", "content": "x"},
        {"role": "tool", "content": "7"},
        {"role": "tool", "content": "noon"},
        {"role": "user", "content": "and now?"},
    ]
    found = described(turns, [TOOLS[1]], shows_system=True)
    assert [turn["role"] for turn in found] == ["system", "user", "user", "assistant", "user"]
    assert found[-1]["content"] == "```tool_output\n7\n```\n```tool_output\nnoon\n```\nand now?"
