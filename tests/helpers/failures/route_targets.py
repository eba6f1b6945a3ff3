"""What any bytes may do on the other routes: OpenAI's bodies with their conversations, KServe's messages, templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
from google.protobuf.message import DecodeError
from helpers import chat_templates
from helpers.failures.byte_targets import LIMITS, check_refusal, is_admitted
from shiftprotos.kserve import open_inference_pb2 as pb
from shiftruntime.engine.messages import Ready
from shiftruntime.server.chat.render_messages import Compile, Failed, FromRenderer, Render, Rendered, RenderLimits
from shiftruntime.server.chat.renderer import _Renderer
from shiftruntime.server.chat.renderers import Renderers, RenderFailed
from shiftruntime.server.chat.template import ChatTemplateError, ChatTemplates, TemplateSources
from shiftruntime.server.frontend import Model
from shiftruntime.server.kserve import KServeService
from shiftruntime.server.kserve_parameters import JSON_PARAMETERS, TEXT_INPUT, read_request
from shiftruntime.server.openai import chat, completions
from shiftruntime.server.openai.errors import HttpError
from shiftruntime.server.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    read,
)
from shiftruntime.server.refusal import Refusal
from shiftruntime.server.request import Generation

NAME = LIMITS.served_name
TEMPLATES = (chat_templates.LLAMA3, chat_templates.QWEN3, chat_templates.MISTRAL, chat_templates.GEMMA)
_NOON = datetime(2026, 1, 1, 12)
_SEPARATOR = b"\0"  # between a template and a conversation
_TURN = {"role": "user", "content": "hi"}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_CALL = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}


class _HereRenderers(Renderers):
    """In this process, so that coverage is seen: the templates are ours, only what they show is not."""

    def __init__(self) -> None:
        self._renderer = _Renderer(RenderLimits().characters)

    def compile(self, key: str, text: str) -> None:
        _told(self._renderer.answer(Compile(key, text)))

    def render(self, key: str, text: str, values: bytes, now: str) -> str:
        answer = _told(self._renderer.answer(Render(key, values, now)))
        assert isinstance(answer, Rendered), "a rendering is answered by one"
        return answer.text


def _told(answer: FromRenderer) -> FromRenderer:
    if isinstance(answer, Failed):
        raise RenderFailed(answer.sentence)
    return answer


class _HereTemplates(ChatTemplates):
    async def render_soon(self, *arguments: Any) -> str:
        return self.render(*arguments)

    async def shows_system(self) -> bool:
        return self._try_system()


def _frontend(template: str) -> Any:
    """As much of a pod as a route asks before the engine."""
    sources = TemplateSources({"default": template}, {"bos_token": "<s>"}, "tests")
    text = SimpleNamespace(chat=_HereTemplates(sources, lambda: _NOON, _HereRenderers()), special_ids={"<s>": 1})
    ready = Ready("tiny", "float32", LIMITS.max_model_len, LIMITS.vocab_size, LIMITS.max_prompt_tokens, ("tp2",))
    model = Model(ready, text, LIMITS)  # type: ignore[arg-type]
    return SimpleNamespace(serving=lambda: model, options=SimpleNamespace(served_name=NAME, tool_calls=None))


_FRONTENDS = [_frontend(template) for template in TEMPLATES]
_REQUEST: Any = SimpleNamespace(headers={})
_KSERVE = KServeService(_FRONTENDS[0])


def check_openai(data: bytes) -> bool:
    """The first byte chooses route and template, the rest is the body; whether it is admitted.

    Anything else is an error object that a client can read.
    """
    if not data:
        return False
    routes: tuple[Callable[[Any, bytes], bool], ...] = (_completion, _chat, _tokenize, _detokenize)
    frontend = _FRONTENDS[data[0] // len(routes) % len(_FRONTENDS)]
    try:
        return routes[data[0] % len(routes)](frontend, data[1:])
    except HttpError as error:
        if not 400 <= error.status < 500:
            raise ValueError(f"status {error.status} for a client's mistake: {error.message[:200]}") from error
        msgspec.json.encode(error.body())
    except Refusal as refusal:
        check_refusal(refusal)
        msgspec.json.encode(HttpError.of(refusal).body())
    return False


def _completion(frontend: Any, body: bytes) -> bool:
    return _admitted(completions, completions.complete(frontend, _REQUEST, read(body, CompletionRequest)))


def _chat(frontend: Any, body: bytes) -> bool:
    return _admitted(chat, chat.chat(frontend, _REQUEST, read(body, ChatRequest)))


def _tokenize(frontend: Any, body: bytes) -> bool:
    asked = read(body, TokenizeRequest)
    if asked.messages is None:
        return asked.prompt is not None
    try:
        prompt = _ended(chat.render(frontend.serving(), asked, tuple(asked.tools or ())))
    except (chat.InvalidMessage, ChatTemplateError) as error:
        raise HttpError(400, "Invalid", str(error)) from error
    prompt.encode()
    return True


def _detokenize(frontend: Any, body: bytes) -> bool:
    return bool(read(body, DetokenizeRequest).tokens)


def _admitted(route: Any, answer: Coroutine[Any, Any, Any]) -> bool:
    """Whether all generations that a route asks for would go on to the engine."""
    asked: list[Generation] = []

    async def noted(*arguments: Any) -> None:
        asked.extend(next(one for one in arguments if isinstance(one, list)))

    with mock.patch.multiple(route, whole=noted, streamed=noted):
        _ended(answer)
    return all(is_admitted(partial(copy, one)) for one in asked)


def _ended(work: Coroutine[Any, Any, Any]) -> Any:
    """What it comes to; nothing in it may wait."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a route waits for something before it asks the engine")


def check_kserve(data: bytes) -> bool:
    """A ModelInferRequest from its bytes to what the engine gets; whether it is admitted."""
    try:
        request = pb.ModelInferRequest.FromString(data)
    except DecodeError:  # grpc answers by itself
        return False

    def generation() -> Generation:
        _KSERVE._check_request(request)
        return read_request(request, None, None)[0]

    return is_admitted(generation)


class TemplateTarget:
    """Any template with any conversation, in the processes that a pod has for them; ended with the process."""

    def __init__(self) -> None:
        self._renderers = Renderers(RenderLimits(cpu_seconds=0.5, wall_seconds=8.0, memory_bytes=64 << 20))

    def __call__(self, data: bytes) -> bool:
        """Whether it renders; anything else is ChatTemplateError."""
        template, _, values = data.partition(_SEPARATOR)
        try:
            messages = msgspec.json.decode(values or b"[]", type=list[dict[str, Any]])
        except (msgspec.DecodeError, RecursionError):
            return False
        try:
            sources = TemplateSources({"default": template.decode(errors="surrogateescape")}, {}, "tests")
            ChatTemplates(sources, lambda: _NOON, self._renderers).render(messages).encode()
        except ChatTemplateError as error:
            msgspec.json.encode(str(error))
            return False
        return True


def openai_samples() -> list[bytes]:
    """Bodies that are admitted: what a mutation begins with."""
    completion: dict[str, Any] = {"prompt": "hi", "max_tokens": 4, "stop": ["a"], "logprobs": 1, "seed": 7}
    bodies: Sequence[tuple[int, dict[str, Any]]] = [
        (0, completion),
        (0, {"prompt": [[5, 6], [7]], "n": 2, "max_tokens": 2, "structured_outputs": {"choice": ["a", "b"]}}),
        (1, {"messages": [_TURN], "max_tokens": 2, "logit_bias": {"3": 0.5}}),
        (1, {"messages": [_TURN], "max_tokens": 2, "tools": [_TOOL], "tool_choice": "required"}),
        (5, {"messages": [_TURN, _CALL, {"role": "tool", "content": "1", "tool_call_id": "a"}], "tools": [_TOOL]}),
        (9, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "stream": True}),
        (13, {"messages": [_TURN], "response_format": {"type": "json_object"}, "continue_final_message": True}),
        (2, {"messages": [_TURN], "chat_template_kwargs": {"enable_thinking": False}}),
        (3, {"tokens": [5, 6]}),
    ]
    return [bytes([route]) + json.dumps(body).encode() for route, body in bodies]


def kserve_samples() -> list[bytes]:
    plain = pb.ModelInferRequest(model_name=NAME, id="a")
    plain.inputs.add(name=TEXT_INPUT, datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"hi")
    plain.parameters["max_tokens"].int64_param = 4
    raw = pb.ModelInferRequest(model_name=NAME, raw_input_contents=[b"\5\0\0\0\6\0\0\0", b"\2\0\0\0{}"])
    raw.inputs.add(name="input_ids", datatype="INT32", shape=[1, 2])
    raw.inputs.add(name=JSON_PARAMETERS, datatype="BYTES", shape=[1])
    return [plain.SerializeToString(), raw.SerializeToString()]


def template_samples() -> list[bytes]:
    conversation = json.dumps([_TURN]).encode()
    return [template.encode() + _SEPARATOR + conversation for template in TEMPLATES]
