"""How much text one token can stand for: from it follows, without tokenising, that a text cannot fit. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import models

from shiftruntime.models.token_bytes import byte_alphabet

_SPACE = "\u2581"  # how SentencePiece writes a space
COMPOSED_SHRINKS = 4  # composing characters (NFC) makes 7 bytes into 2 at worst
# Steps that change no length, or make text longer. Others may drop text, and then nothing can be said.
_KEEPING = frozenset({"ByteLevel", "Digits", "Metaspace", "Prepend", "Punctuation", "Split", "UnicodeScripts"})


def longest_token_bytes(backend: tokenizers.Tokenizer) -> int | None:
    """UTF-8 bytes of a text that one token stands for at most; None where a token may swallow any amount of it."""
    steps = tuple(_steps(backend))
    if any(not _keeps_text(step) for step in steps) or not _knows_every_byte(backend, steps):
        return None
    # An added token may take the white space around it along.
    if any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    longest = max(len(piece.replace(_SPACE, " ").encode("utf-8", "surrogatepass")) for piece in vocabulary)
    return longest * (COMPOSED_SHRINKS if any(step["type"] == "NFC" for step in steps) else 1)


def _steps(backend: tokenizers.Tokenizer) -> Iterator[Mapping[str, Any]]:
    """What a text goes through before the vocabulary sees it, as tokenizer.json writes it."""
    empty = tokenizers.Tokenizer(models.BPE())  # the real vocabulary would take seconds to write
    if backend.normalizer is not None:
        empty.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        empty.pre_tokenizer = backend.pre_tokenizer
    written = json.loads(empty.to_str())
    for step in (written["normalizer"], written["pre_tokenizer"]):
        if step is not None:
            yield from step.get("normalizers") or step.get("pretokenizers") or (step,)


def _keeps_text(step: Mapping[str, Any]) -> bool:
    kind = step["type"]
    if kind == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == _SPACE)
    return kind == "NFC" or (kind in _KEEPING and step.get("behavior") != "Removed")


def _knows_every_byte(backend: tokenizers.Tokenizer, steps: tuple[Mapping[str, Any], ...]) -> bool:
    """Otherwise a run of unknown characters becomes one token, or none."""
    model = backend.model
    if not isinstance(model, models.BPE):
        return False
    if any(step["type"] == "ByteLevel" for step in steps):
        return all(backend.token_to_id(character) is not None for character in byte_alphabet())
    return model.byte_fallback and all(backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
