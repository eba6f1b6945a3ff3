"""The tokenizer of the model that is served. The weights stay in the engine process, and torch with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from shiftprotos import contract

from shiftruntime.errors import StartupError
from shiftruntime.models.generation_config import GenerationDefaults, load_generation_defaults
from shiftruntime.models.manifest import verify
from shiftruntime.models.token_bounds import longest_token_bytes
from shiftruntime.models.token_bytes import StreamDecoder
from shiftruntime.models.tokenizer import Tokenizer, load_tokenizer
from shiftruntime.server.chat import template_source
from shiftruntime.server.chat.renderers import NoRenderer
from shiftruntime.server.chat.template import ChatTemplateError, ChatTemplates

log = logging.getLogger(__name__)


class TokenizerText:
    """shiftruntime.server.frontend.Text over a model's tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        defaults: GenerationDefaults,
        chat: ChatTemplates | None = None,
        chat_error: str = "the model has no chat template",
    ) -> None:
        """``chat_error`` says why ``chat`` is None."""
        self.chat = chat
        self.chat_error = chat_error
        self._tokenizer = tokenizer
        self._defaults = defaults
        self._longest_token_bytes = longest_token_bytes(tokenizer.backend)
        self._shows_special = replace(tokenizer.bytes_of, special=frozenset())

    @property
    def defaults(self) -> GenerationDefaults:
        return self._defaults

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._tokenizer.eos_ids

    def encode(self, text: str, add_special_tokens: bool = True, at_most: int | None = None) -> list[int]:
        """Raises TooManyTokens above ``at_most``. Other threads run meanwhile."""
        return self._tokenizer.encode(text, None if add_special_tokens else False, at_most)

    @property
    def longest_token_bytes(self) -> int | None:
        """Bytes of a text that one token stands for at most, where that is known."""
        return self._longest_token_bytes

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; special tokens and ids outside the vocabulary have none."""
        return self._tokenizer.bytes_of(token_id)

    def token_piece(self, token_id: int) -> bytes:
        """As token_bytes, with special tokens as they are written."""
        return self._shows_special(token_id)

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        """Special tokens as they are written → their ids."""
        pieces = {token_id: self._tokenizer.bytes_of.piece(token_id) for token_id in self._tokenizer.bytes_of.special}
        return {piece: token_id for token_id, piece in sorted(pieces.items()) if piece is not None}

    def decoder(self, visible_special_ids: frozenset[int] = frozenset()) -> StreamDecoder:
        """Special tokens have no text, but for those that are to be visible."""
        bytes_of = self._tokenizer.bytes_of
        if not visible_special_ids:
            return StreamDecoder(bytes_of)
        return StreamDecoder(replace(bytes_of, special=bytes_of.special - visible_special_ids))


def load(model: str, chat_template: Path | None = None) -> TokenizerText:
    """Raises StartupError. Reads the whole vocabulary: seconds for a large one, so call it in a thread.

    A model whose own chat template is missing or broken serves everything else; one that is given (``chat_template``)
    must be good.
    """
    verify(model, weights=False)  # a damaged tokenizer is called damaged, not strange; the engine checks the rest
    with ThreadPoolExecutor(1, "chat templates") as beside:  # their process starts while the vocabulary is read
        templates = beside.submit(lambda: ChatTemplates(template_source.read(model, chat_template)))
        tokenizer, defaults = load_tokenizer(model), load_generation_defaults(model)
    try:
        return TokenizerText(tokenizer, defaults, templates.result())
    except NoRenderer as error:
        raise StartupError(contract.REASON_INTERNAL, str(error)) from error
    except ChatTemplateError as error:
        if chat_template is not None:
            raise StartupError(contract.REASON_INVALID_ARGUMENT, f"--chat-template: {error}") from error
        log.info("no chats: %s", error)
        return TokenizerText(tokenizer, defaults, chat_error=str(error))
