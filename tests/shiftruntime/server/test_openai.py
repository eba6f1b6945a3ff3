"""OpenAI's port as a whole: its routes beside completions and chats, limits, keys and the start of the pod."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from shiftruntime.server.app import serve

from .openai_calls import USER, client_of, raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_trace_context_goes_back(pod, path, stream):
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    body = {"messages": USER} if "chat" in path else {"prompt": "hi"}
    status, headers, _ = await raw(pod, "POST", path, body | {"stream": stream}, traceparent=trace)
    assert (status, headers["traceparent"]) == (200, trace)
    _, headers, _ = await raw(pod, "POST", path, body | {"stream": stream}, traceparent="00-nonsense")
    assert "traceparent" not in headers


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


async def test_a_pod_that_starts_says_so(start_pod):
    pod = await start_pod(configure=lambda engine: engine.may_start.clear(), ready=False)
    status, headers, _ = await raw(pod, "GET", "/health")
    assert (status, headers["Connection"]) == (503, "close")
    status, headers, text = await raw(pod, "POST", "/v1/completions", {"prompt": "x"})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert json.loads(text)["error"]["code"] == "Starting"
    pod.engine.may_start.set()


async def test_a_large_body_is_refused(start_pod, serve_options):
    pod = await start_pod(limits=replace(serve_options.limits, message_bytes=2000))
    status, _, text = await raw(pod, "POST", "/v1/completions", {"prompt": "x" * 3000})
    assert (status, json.loads(text)["error"]["code"]) == (413, "BodyTooLarge")


async def test_large_headers_are_refused(pod):
    status, _, _ = await raw(pod, "GET", "/health", **dict[str, Any]({"X-Large": "x" * 40_000}))
    assert status == 400


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
