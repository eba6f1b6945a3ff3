"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from shiftruntime.engine.messages import Finish, Grammar
from shiftruntime.server.chat import reasoning
from shiftruntime.server.chat.answer import Answer, Piece
from shiftruntime.server.chat.call_parsers import MISTRAL_MARKER, NamedCall, RequiredCalls
from shiftruntime.server.chat.calls import CallParser, PlainText
from shiftruntime.server.chat.messages import InvalidMessage, Tool, for_template, tools_for_template
from shiftruntime.server.chat.template import ChatTemplateError
from shiftruntime.server.chat.tools import (
    MARKERS,
    PARSERS,
    Family,
    InvalidTools,
    check_tools,
    described,
    family_of,
    grammar_of_any,
    grammar_of_one,
    new_call_id,
    with_short_ids,
)
from shiftruntime.server.frontend import FrontEnd, Model, Text
from shiftruntime.server.openai.answers import FINISH, Head, Usage
from shiftruntime.server.openai.errors import invalid
from shiftruntime.server.openai.logprobs import chat_logprobs, joined
from shiftruntime.server.openai.protocol import ChatRequest, NamedTool, StreamOptions, TokenizeRequest
from shiftruntime.server.openai.requests import generation_fields, model_of
from shiftruntime.server.openai.respond import streamed, whole
from shiftruntime.server.openai.sampling import chat_options, grammar
from shiftruntime.server.request import Delta, Generation

Json = dict[str, Any]


async def chat(frontend: FrontEnd, request: web.Request, body: ChatRequest) -> web.StreamResponse:
    """Raises HttpError or Refusal before the answer begins."""
    if set(body.modalities or ()) - {"text"}:
        raise invalid(f"modalities {body.modalities}: only text is supported", "modalities", "Unsupported")
    model = model_of(frontend, body.model)
    try:
        plan = _plan_calls(model, body, frontend.options.tool_calls)
        options = chat_options(body, plan.grammar)
        prompt = await render(model, body, plan.offered)
    except (InvalidMessage, ChatTemplateError) as error:
        raise invalid(str(error), "messages") from error
    except InvalidTools as error:
        raise invalid(str(error), "tools") from error
    head = Head.new("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", model.limits.served_name)
    fields = generation_fields(request, body, model)
    fields["visible_special_ids"] |= plan.visible
    generation = Generation(prompt, options, request_id=head.id, add_special_tokens=body.add_special_tokens, **fields)
    answer = ChatAnswer(
        head, model.text, [plan.answer(prompt) for _ in range(body.n)], plan.named, body.include_reasoning
    )
    if body.stream:
        return await streamed(request, frontend, [generation], answer, body.stream_options or StreamOptions())
    return await whole(frontend, [generation], answer)


async def render(model: Model, body: ChatRequest | TokenizeRequest, tools: tuple[Tool, ...]) -> str:
    """The prompt of a conversation. Raises InvalidMessage, ChatTemplateError, HttpError or Refusal."""
    if body.continue_final_message and body.add_generation_prompt:
        sentence = "continue_final_message and add_generation_prompt exclude each other; leave one of them out"
        raise invalid(sentence, "add_generation_prompt")
    templates = model.text.chat
    if templates is None:
        raise ChatTemplateError(
            f"{model.text.chat_error}; use /v1/completions, or start the server with --chat-template"
        )
    source = templates.text(bool(tools))
    messages = for_template(body.messages or (), knows_developer="developer" in source)
    plain = tools_for_template(tools)
    if plain and "tools" not in source:
        messages, plain = described(messages, plain, await templates.shows_system()), []
    elif MISTRAL_MARKER in source:
        messages = with_short_ids(messages)
    variables = body.chat_template_kwargs
    begins = body.add_generation_prompt is not False
    return await templates.render_soon(messages, plain, begins, body.continue_final_message, variables)


@dataclass(frozen=True)
class _Calls:
    """How calls come about in this chat."""

    offered: tuple[Tool, ...]  # what the model is told of
    parser: Callable[[], CallParser]
    parallel: bool
    thinks: bool
    grammar: Grammar | None = None
    visible: frozenset[int] = frozenset()  # special tokens that the parser must see
    named: bool = False

    def answer(self, prompt: str) -> Answer:
        begun = prompt.rstrip().endswith(reasoning.BEGIN)
        return Answer(self.parser(), reasoning.ReasoningSplitter(begun) if self.thinks else None, self.parallel)


def _plan_calls(model: Model, body: ChatRequest, calls_as: Family | None) -> _Calls:
    """``calls_as``: how the model writes calls, where it is told. Raises HttpError or InvalidTools."""
    tools = tuple(body.tools or ())
    check_tools(tools)
    choice = body.tool_choice or ("auto" if tools else "none")
    if choice != "none" and not tools:
        raise invalid("tool_choice needs tools, and there are none", "tool_choice")
    source = model.text.chat.text(bool(tools)) if model.text.chat else ""
    parallel = body.parallel_tool_calls
    if isinstance(choice, NamedTool):
        name = choice.function.name
        one = next((tool for tool in tools if tool.function.name == name), None)
        if one is None:
            raise invalid(f"tool_choice names function {name!r}, which is not among the tools", "tool_choice")
        return _Calls(tools, lambda: NamedCall(name), parallel, False, grammar_of_one(one), named=True)
    if choice == "required":
        return _Calls(tools, RequiredCalls, parallel, False, grammar_of_any(tools, parallel))
    # A grammar leaves no room for thoughts.
    thinks = reasoning.END in source and grammar(body) is None
    if choice == "none":
        return _Calls((), PlainText, parallel, thinks)
    family = calls_as or family_of(source)
    names = [tool.function.name for tool in tools]
    special = model.text.special_ids
    visible = frozenset(special[marker] for marker in MARKERS.get(family, ()) if marker in special)
    return _Calls(tools, lambda: PARSERS[family](names), parallel, thinks, visible=visible)


class ChatAnswer:
    """The choices of one chat."""

    def __init__(self, head: Head, text: Text, answers: list[Answer], named: bool, shows_reasoning: bool) -> None:
        self.head = head
        self.usage = Usage()
        self._text = text
        self._answers = answers
        self._named = named
        self._shows_reasoning = shows_reasoning
        self._begun = [False] * len(answers)
        self._finish: list[str | None] = [None] * len(answers)
        self._logprobs: list[list[Json]] = [[] for _ in answers]
        self._call_ids: list[list[str]] = [[] for _ in answers]

    def add(self, prompt: int, delta: Delta) -> list[Json]:
        index, answer = delta.index, self._answers[delta.index]
        pieces = [answer.push(delta.text)] if delta.text else []
        logprobs = chat_logprobs(self._text, delta)
        if logprobs:
            self._logprobs[index].append(logprobs)
        if delta.finish is not None:
            pieces.append(answer.finish())
            self._finish[index] = self._reason(answer, delta.finish)
        choices = [] if self._begun[index] else [_choice(index, {"role": "assistant", "content": ""})]
        self._begun[index] = True
        told = [told for piece in pieces if (told := self._delta(index, piece))]
        if logprobs and not told:
            told = [{}]
        for position, each in enumerate(told):
            choices.append(_choice(index, each, logprobs if position == 0 else None))
        if delta.finish is not None:
            choices.append(_choice(index, {}, finish=self._finish[index]))
        return choices

    def body(self) -> Json:
        choices = []
        for index, answer in enumerate(self._answers):
            message: Json = {"role": "assistant", "content": answer.content or (None if answer.calls else "")}
            if answer.reasoning and self._shows_reasoning:
                message["reasoning_content"] = answer.reasoning
            if answer.calls:
                message["tool_calls"] = [
                    {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                    for call_id, call in zip(self._call_ids[index], answer.calls, strict=True)
                ]
            logprobs = joined(self._logprobs[index])
            finish = self._finish[index]
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
        return self.head.chunk(choices, usage=self.usage.body(), **self.usage.shift())

    def _reason(self, answer: Answer, finish: Finish) -> str:
        """As OpenAI has it: an answer that was made to call a named function stops like any other."""
        if finish is Finish.STOP and answer.calls and not self._named:
            return "tool_calls"
        return FINISH[finish]

    def _delta(self, index: int, piece: Piece) -> Json:
        told: Json = {}
        if piece.reasoning and self._shows_reasoning:
            told["reasoning_content"] = piece.reasoning
        if piece.content:
            told["content"] = piece.content
        if piece.calls:
            told["tool_calls"] = [self._call(index, delta.index, delta.name, delta.arguments) for delta in piece.calls]
        return told

    def _call(self, index: int, position: int, name: str | None, arguments: str) -> Json:
        if name is None:
            return {"index": position, "function": {"arguments": arguments}}
        call_id = new_call_id()
        self._call_ids[index].append(call_id)
        function = {"name": name, "arguments": arguments}
        return {"index": position, "id": call_id, "type": "function", "function": function}


def _choice(index: int, delta: Json, logprobs: Json | None = None, finish: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
