"""Ids back to text, one at a time: every token is a string of bytes, and text is final once its UTF-8 is complete."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


@dataclass(frozen=True)
class TokenBytes:
    """What bytes a token stands for; special tokens and ids outside the vocabulary have none."""

    piece: Callable[[int], str | None]
    to_bytes: Callable[[str], bytes]
    special: frozenset[int]
    strip_first_space: bool = False  # Llama: the space that encoding put before the first word

    def __call__(self, token: int) -> bytes:
        if token in self.special:
            return b""
        piece = self.piece(token)
        return b"" if piece is None else self.to_bytes(piece)

    @staticmethod
    def byte_fallback(tokens: Sequence[str], special: frozenset[int], strip_first_space: bool = False) -> TokenBytes:
        """SentencePiece: ▁ is a space and <0xE4> a byte."""

        def piece(token: int) -> str | None:
            return tokens[token] if 0 <= token < len(tokens) else None

        return TokenBytes(piece, _from_sentencepiece, special, strip_first_space)

    @staticmethod
    def byte_level(piece: Callable[[int], str | None], special: frozenset[int], verbatim: set[str]) -> TokenBytes:
        """Every character of a token is a byte, except in added tokens (``verbatim``), which stand as they are."""
        alphabet = byte_alphabet()
        return TokenBytes(piece, lambda text: _from_byte_level(text, alphabet, verbatim), special)

    @staticmethod
    def of(backend: tokenizers.Tokenizer, spec: dict[str, Any]) -> TokenBytes:
        """From the decoder that a tokenizer.json (``spec``) names."""
        added = {int(token["id"]): token for token in spec.get("added_tokens", ())}
        special = frozenset(i for i, token in added.items() if token.get("special"))
        decoder = spec.get("decoder") or {}
        stages = decoder.get("decoders", [decoder])
        kinds = {stage.get("type") for stage in stages}
        strips = any(stage.get("type") == "Strip" and stage.get("start") for stage in stages)
        if "ByteLevel" in kinds:
            return TokenBytes.byte_level(
                backend.id_to_token, special, {str(token["content"]) for token in added.values()}
            )
        if kinds & {"ByteFallback", "Metaspace"}:
            return TokenBytes(backend.id_to_token, _from_sentencepiece, special, strips or "Metaspace" in kinds)
        return TokenBytes(backend.id_to_token, lambda piece: piece.encode(), special)


class StreamDecoder:
    """Turns one sequence's ids into text that never changes afterwards."""

    def __init__(self, bytes_of: TokenBytes) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = bytes_of.strip_first_space

    def push(self, token: int) -> str:
        """The text that became final with this token: empty inside a character of several tokens."""
        data = self._bytes_of(token)
        if data and self._at_start:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What was held back, with U+FFFD for a character that never came to its end."""
        return self._utf8.decode(b"", True)


def byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level BPE: printable Latin-1 stands for itself, the rest moves up to U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _from_byte_level(piece: str, alphabet: dict[str, int], verbatim: set[str]) -> bytes:
    if piece in verbatim or any(char not in alphabet for char in piece):
        return piece.encode()
    return bytes(alphabet[char] for char in piece)


def _from_sentencepiece(piece: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode("utf-8", "surrogateescape")
