"""POST /tokenize and /detokenize, by vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shiftruntime.server.chat.messages import InvalidMessage
from shiftruntime.server.chat.template import ChatTemplateError
from shiftruntime.server.frontend import FrontEnd, Text
from shiftruntime.server.openai.chat import render
from shiftruntime.server.openai.errors import invalid
from shiftruntime.server.openai.logprobs import token_text
from shiftruntime.server.openai.protocol import DetokenizeRequest, TokenizeRequest
from shiftruntime.server.openai.requests import model_of
from shiftruntime.server.tokens import detokenise, in_thread, slices, tokenise


async def tokenize(frontend: FrontEnd, body: TokenizeRequest) -> dict[str, Any]:
    """Raises HttpError or Refusal."""
    model = model_of(frontend, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("give one of prompt and messages", "prompt")
    special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
    try:
        text = body.prompt if body.prompt is not None else await render(model, body, tuple(body.tools or ()))
    except (InvalidMessage, ChatTemplateError) as error:
        raise invalid(str(error), "messages") from error
    ids = await tokenise(model, text, special)
    strings = await in_thread(model, len(ids), _strings, model.text, ids) if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": model.limits.max_model_len, "tokens": ids, "token_strs": strings}


async def detokenize(frontend: FrontEnd, body: DetokenizeRequest) -> dict[str, Any]:
    """Raises Refusal."""
    model = model_of(frontend, body.model)
    visible = frozenset(model.text.special_ids.values())
    return {"prompt": await detokenise(model, body.tokens, visible)}


def _strings(text: Text, ids: Sequence[int]) -> list[str]:
    return [token_text(text, token_id) for _, some in slices(ids) for token_id in some]
