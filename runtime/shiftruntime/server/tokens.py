"""Text to ids and back. However long they are, the event loop goes on meanwhile: other streams live in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from shiftruntime.models.tokenizer import TooManyTokens
from shiftruntime.server.frontend import Model
from shiftruntime.server.text import Decoder
from shiftruntime.server.validation import (
    MAX_CALL_TOKENS,
    Limits,
    check_call_tokens,
    check_prompt_text,
    check_token_ids,
    prompt_too_long,
)

T = TypeVar("T")

# Shorter texts, and fewer ids, are turned in the event loop: a thread costs more than they do. A thread gives the
# interpreter away after so many ids, a few milliseconds.
INLINE = 2048


async def tokenise_prompt(model: Model, text: str, add_special_tokens: bool = True) -> list[int]:
    """Ids of a text that fits; raises Refusal, and without tokenising where that is known to be in vain."""
    check_prompt_text(text, model.text.longest_token_bytes, model.limits)
    at_most = model.limits.max_prompt_tokens
    try:
        return await in_thread(model, len(text), model.text.encode, text, add_special_tokens, at_most)
    except TooManyTokens as error:
        raise prompt_too_long(error.num_tokens, model.limits) from error


async def tokenise(model: Model, text: str, add_special_tokens: bool = True) -> list[int]:
    """Ids of a text, whether the model could read it or not; raises Refusal above MAX_CALL_TOKENS."""
    try:
        return await in_thread(model, len(text), model.text.encode, text, add_special_tokens, MAX_CALL_TOKENS)
    except TooManyTokens as error:
        check_call_tokens(error.num_tokens)
        raise


async def detokenise(model: Model, ids: Sequence[int], visible_special_ids: frozenset[int] = frozenset()) -> str:
    """Text of ids; raises Refusal for one that the model does not know, or for too many."""
    check_call_tokens(len(ids))
    await in_thread(model, len(ids), _check, ids, model.limits)
    return await text_of(model, ids, visible_special_ids)


async def text_of(model: Model, ids: Sequence[int], visible_special_ids: frozenset[int] = frozenset()) -> str:
    """Text of ids that the model knows."""
    return await in_thread(model, len(ids), _decode, model.text.decoder(visible_special_ids), ids)


async def in_thread(model: Model, size: int, function: Callable[..., T], *arguments: object) -> T:
    """``function``'s answer; from a thread if ``size``, in characters or ids, is large."""
    if size <= INLINE:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(model.long_texts, function, *arguments)


def slices(ids: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """(position of the first, some ids). A thread that goes through them lets others run between two slices."""
    for first in range(0, len(ids), INLINE):
        yield first, ids[first : first + INLINE]
        if first + INLINE < len(ids):
            time.sleep(0)


def _check(ids: Sequence[int], limits: Limits) -> None:
    for first, some in slices(ids):
        check_token_ids("token id", some, limits, first)


def _decode(decoder: Decoder, ids: Sequence[int]) -> str:
    return "".join("".join(map(decoder.push, some)) for _, some in slices(ids)) + decoder.flush()
