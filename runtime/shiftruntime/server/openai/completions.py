"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from shiftruntime.server.frontend import FrontEnd, Text
from shiftruntime.server.openai.answers import FINISH, Head, Usage
from shiftruntime.server.openai.errors import invalid
from shiftruntime.server.openai.logprobs import Columns, joined
from shiftruntime.server.openai.protocol import CompletionRequest, StreamOptions
from shiftruntime.server.openai.requests import generation_fields, model_of
from shiftruntime.server.openai.respond import streamed, whole
from shiftruntime.server.openai.sampling import completion_options
from shiftruntime.server.request import Delta, Generation

MAX_PROMPTS = 128

Json = dict[str, Any]


async def complete(frontend: FrontEnd, request: web.Request, body: CompletionRequest) -> web.StreamResponse:
    """Raises HttpError or Refusal before the answer begins."""
    model = model_of(frontend, body.model)
    options = completion_options(body)
    head = Head.new("cmpl", "text_completion", frontend.options.served_name)
    prompts = _prompts(body.prompt)
    fields = generation_fields(request, body, model)
    generations = [
        Generation(
            prompt,
            options,
            request_id=head.id if len(prompts) == 1 else f"{head.id}-{index}",
            echo=body.echo,
            add_special_tokens=body.add_special_tokens,
            **fields,
        )
        for index, prompt in enumerate(prompts)
    ]
    answer = CompletionAnswer(head, model.text, body.n, len(prompts), body.logprobs is not None)
    if body.stream:
        return await streamed(request, frontend, generations, answer, body.stream_options or StreamOptions())
    return await whole(frontend, generations, answer)


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | tuple[int, ...]]:
    """One per text or list of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    texts = [each for each in prompt if isinstance(each, str)]
    ids = [each for each in prompt if isinstance(each, int)]
    lists = [each for each in prompt if isinstance(each, list)]
    if ids and len(ids) == len(prompt):
        return [tuple(ids)]
    if not prompt or len(prompt) not in (len(texts), len(lists)):
        raise invalid("prompt is neither texts nor token ids nor lists of token ids", "prompt")
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"{len(prompt)} prompts; at most {MAX_PROMPTS} are allowed in one request", "prompt")
    return [*texts, *(tuple(each) for each in lists)]


class CompletionAnswer:
    """Choice i of prompt p has index p·n + i."""

    def __init__(self, head: Head, text: Text, n: int, num_prompts: int, logprobs: bool) -> None:
        self.head = head
        self.usage = Usage()
        self._n = n
        self._logprobs = logprobs
        scores: list[list[float]] = [[] for _ in range(num_prompts)]
        self._columns = [Columns(text, scores[index // n]) for index in range(n * num_prompts)]
        self._texts = [""] * (n * num_prompts)
        self._parts: list[list[Json]] = [[] for _ in range(n * num_prompts)]
        self._finish: list[str | None] = [None] * (n * num_prompts)

    def add(self, prompt: int, delta: Delta) -> list[Json]:
        index = prompt * self._n + delta.index
        columns = self._columns[index].take(delta) if self._logprobs else None
        self._texts[index] += delta.text
        if columns:
            self._parts[index].append(columns)
        if delta.finish is not None:
            self._finish[index] = FINISH[delta.finish]
        if not (delta.text or columns or delta.finish):
            return []
        return [_choice(index, delta.text, columns, self._finish[index])]

    def body(self) -> Json:
        choices = [
            _choice(index, text, joined(self._parts[index]), self._finish[index])
            for index, text in enumerate(self._texts)
        ]
        return self.head.chunk(choices, usage=self.usage.body(), **self.usage.shift())


def _choice(index: int, text: str, columns: Json | None, finish: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": columns, "finish_reason": finish}
