"""What cannot be answered on OpenAI's routes is an error object with its status, before a stream and in it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from shiftruntime.engine.client import RequestRefused

from .openai_calls import NOW, USER, client_of, raw
from .waiting import eventually

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


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', "[" * 100_000], ids=["half a pair", "deep"])
async def test_arguments_that_no_template_could_write_are_refused_and_not_an_error_of_ours(client, arguments):
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    with pytest.raises(openai.BadRequestError, match="arguments of 'f' are no JSON"):
        await client.chat.completions.create(model="fake", messages=[{"role": "assistant", "tool_calls": calls}])


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
    await eventually(lambda: not pod.engine.running)


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
