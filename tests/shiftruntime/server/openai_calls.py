"""Calls of a pod's OpenAI port, with OpenAI's own client and without."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import openai

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


async def raw(pod: Any, method: str, path: str, body: bytes | dict[str, Any] | None = None, **headers: str):
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    url = f"http://127.0.0.1:{pod.ports.openai}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, data=data, headers=headers) as answer:
        return answer.status, dict(answer.headers), await answer.text()
