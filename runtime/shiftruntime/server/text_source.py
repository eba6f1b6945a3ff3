"""The tokenizer of the model that is served. The weights stay in the engine process, and torch with them."""

from __future__ import annotations

from shiftruntime.models.generation_config import GenerationDefaults, load_generation_defaults
from shiftruntime.models.manifest import verify
from shiftruntime.models.token_bytes import StreamDecoder
from shiftruntime.models.tokenizer import Tokenizer, load_tokenizer


class TokenizerText:
    """shiftruntime.server.frontend.Text over a model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer, defaults: GenerationDefaults) -> None:
        self._tokenizer = tokenizer
        self._defaults = defaults

    @property
    def defaults(self) -> GenerationDefaults:
        return self._defaults

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._tokenizer.eos_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_bos=None if add_special_tokens else False)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; special tokens and ids outside the vocabulary have none."""
        return self._tokenizer.bytes_of(token_id)

    def decoder(self) -> StreamDecoder:
        return self._tokenizer.stream_decoder()


def load(model: str) -> TokenizerText:
    """Raises StartupError. Reads the whole vocabulary: seconds for a large one, so call it in a thread."""
    verify(model, weights=False)  # a damaged tokenizer is called damaged, not strange; the engine checks the rest
    return TokenizerText(load_tokenizer(model), load_generation_defaults(model))
