"""The openai client against `shift-runtime serve` with real ranks: answers, grammar, lost clients, load, drain."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from helpers.chat_templates import QWEN3
from helpers.tiny_models import save_llama
from shiftprotos import contract

pytestmark = pytest.mark.ranks

START_SECONDS = 90.0
CALL_SECONDS = 60.0
LONG = 440
USER = [{"role": "user", "content": "hi"}]


@dataclass
class Server:
    process: subprocess.Popen[str]
    openai_port: int
    ops_port: int

    def client(self) -> openai.AsyncOpenAI:
        url = f"http://127.0.0.1:{self.openai_port}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=CALL_SECONDS)

    def free_blocks(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/metrics", timeout=CALL_SECONDS) as answer:
            text = answer.read().decode()
        return float(re.search(rf"^{contract.METRIC_KV_FREE} (\S+)$", text, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-chat")
    save_llama(folder, max_position_embeddings=512)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": QWEN3}))
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    options = ["--ranks", "2", "--dtype", "float32", "--kv-memory", "4Mi", "--max-batched-tokens", "64", "--exact"]
    ports = ["--port", "0", "--control-port", "0", "--ops-port", "0", "--openai-port", "any", "--threshold", "8"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SHIFT_")}
    command = [sys.executable, "-m", "shiftruntime", "serve", str(model), "--served-name", "tiny", *options, *ports]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
    reader.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not any("ready:" in line for line in lines):
            assert process.poll() is None, f"ended with {process.returncode}:\n{''.join(lines)}"
            assert time.monotonic() < deadline, f"not ready:\n{''.join(lines)}"
            time.sleep(0.05)
        found = re.search(r"ops (\d+), openai (\d+)", "".join(lines))
        yield Server(process, int(found[2]), int(found[1]))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(CALL_SECONDS)
        reader.join(CALL_SECONDS)
        process.stderr.close()


async def test_an_answer_is_the_same_streamed_and_whole(server: Server) -> None:
    async with server.client() as client:
        asked = {
            "model": "tiny",
            "messages": USER,
            "max_tokens": 24,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 3,
        }
        whole = await client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
        stream = await client.chat.completions.create(
            **asked, extra_body={"ignore_eos": True}, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    choice = whole.choices[0]
    assert whole.usage.completion_tokens == 24
    assert choice.finish_reason == "length"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert chunks[-1].usage.completion_tokens == 24
    assert sum(whole.shift["choices"][0]["gear_share"].values()) == pytest.approx(1, abs=1e-3)
    assert len(choice.logprobs.content) == 24
    for token in choice.logprobs.content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob), "greedy takes the likeliest"
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert values[0] < 0


async def test_a_prompts_scores_do_not_depend_on_how_it_is_asked(server: Server) -> None:
    async with server.client() as client:
        whole = await client.completions.create(model="tiny", prompt="The fox", max_tokens=0, echo=True, logprobs=0)
        more = await client.completions.create(model="tiny", prompt="The fox", max_tokens=3, echo=True, logprobs=0)
    assert whole.choices[0].text == "The fox"
    scores = whole.choices[0].logprobs.token_logprobs
    assert scores[0] is None
    assert scores[1:] == pytest.approx(more.choices[0].logprobs.token_logprobs[1 : len(scores)], abs=1e-4)
    assert "".join(whole.choices[0].logprobs.tokens[1:]) == "The fox"


async def test_a_required_call_has_the_schemas_form(server: Server) -> None:
    city = {"type": "string", "enum": ["Bonn", "Rome"]}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    async with server.client() as client:
        # A random model would fill its tokens with the white space that JSON allows.
        asked = {"prompt": " ", "add_special_tokens": False}
        space = await client.post("/../tokenize", body=asked, cast_to=dict[str, object])
        bias = {str(token): -100 for token in space["tokens"]}
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            answer = await client.chat.completions.create(
                model="tiny", messages=USER, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=120,
                seed=1, logit_bias=bias,
            )  # fmt: skip
            (call,) = answer.choices[0].message.tool_calls
            assert call.function.name == "weather"
            assert json.loads(call.function.arguments)["city"] in ("Bonn", "Rome")


async def test_streams_that_clients_leave_give_their_blocks_back(server: Server) -> None:
    before = server.free_blocks()
    async with server.client() as client:
        for _ in range(10):
            stream = await client.completions.create(
                model="tiny", prompt="a long story", max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}
            )
            await anext(aiter(stream))
            await stream.close()
    deadline = time.monotonic() + 10
    while server.free_blocks() < before:
        assert time.monotonic() < deadline, f"{server.free_blocks()} of {before} blocks are free"
        await asyncio.sleep(0.1)


async def test_fifty_clients_at_once(server: Server) -> None:
    """Each gets its own answer: the one that its prompt gets alone."""

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"number {number % 5}"}], max_tokens=8, temperature=0,
            stream=True, extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    async with server.client() as client:
        alone = [await one(client, number) for number in range(5)]
        texts = await asyncio.gather(*(one(client, number) for number in range(50)))
    assert len(set(alone)) == 5, "the prompts must be told apart by their answers"
    assert texts == [alone[number % 5] for number in range(50)]


async def test_a_drain_completes_streams(server: Server) -> None:
    """Last, because it ends the server."""
    async with server.client() as client:
        stream = await client.completions.create(
            model="tiny",
            prompt="a long story",
            max_tokens=LONG,
            stream=True,
            logprobs=0,
            extra_body={"ignore_eos": True},
        )
        chunks = [await anext(aiter(stream))]
        server.process.send_signal(signal.SIGTERM)
        chunks += [chunk async for chunk in stream]
    assert sum(len(chunk.choices[0].logprobs.tokens) for chunk in chunks if chunk.choices[0].logprobs) == LONG
    assert await asyncio.to_thread(server.process.wait, CALL_SECONDS) == 0
