"""What one token stands for at most: never less than what it really stands for, and unknown where text is dropped."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from shiftruntime.models.token_bounds import COMPOSED_SHRINKS, longest_token_bytes
from shiftruntime.models.token_bytes import byte_alphabet
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

TEXTS = (
    "Hello world", "  two  spaces\n\n\n\n", "你好，世界", "😀 e\u0301 ﷽", "a" * 300, " " * 300, "e\u0323\u0302" * 50,
)  # fmt: skip


def byte_level(*pieces: str) -> Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate([*byte_alphabet(), *pieces])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def sentencepiece(num_bytes: int = 256) -> Tokenizer:
    pieces = ["<unk>", "\u2581", "ab", *(f"<0x{byte:02X}>" for byte in range(num_bytes))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return backend


def with_normalizer(backend: Tokenizer, normalizer: normalizers.Normalizer) -> Tokenizer:
    backend.normalizer = normalizer
    return backend


def test_the_longest_token_counts() -> None:
    assert longest_token_bytes(byte_level("Ġhello")) == len(" hello") + 1, "Ġ is one byte, and two of UTF-8"
    assert longest_token_bytes(sentencepiece()) == len("<0x00>")
    composing = with_normalizer(byte_level(), normalizers.NFC())
    assert longest_token_bytes(composing) == 2 * COMPOSED_SHRINKS


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "backend",
    [byte_level(), sentencepiece(), with_normalizer(byte_level(), normalizers.NFC())],
    ids=["byte-level", "sentencepiece", "composing"],
)
def test_no_text_has_fewer_tokens_than_follow_from_it(backend: Tokenizer, text: str) -> None:
    longest = longest_token_bytes(backend)
    assert longest is not None
    assert len(backend.encode(text)) * longest >= len(text.encode())


def swallowing() -> Tokenizer:
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return backend


def removing() -> Tokenizer:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), backend.pre_tokenizer])
    return backend


def without_a_byte() -> Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(list(byte_alphabet())[:-1])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        sentencepiece(num_bytes=255),
        without_a_byte(),
        Tokenizer(models.WordLevel(vocab={"[UNK]": 0}, unk_token="[UNK]")),
        with_normalizer(byte_level(), normalizers.Strip()),
        with_normalizer(byte_level(), normalizers.Replace("  ", " ")),
        with_normalizer(byte_level(), normalizers.NFKC()),
        swallowing(),
        removing(),
    ],
    ids=["unknown-byte", "dropped-byte", "words", "strip", "replace", "nfkc", "swallowed-space", "removed-space"],
)
def test_nothing_is_said_where_a_token_may_swallow_text(backend: Tokenizer) -> None:
    assert longest_token_bytes(backend) is None


def test_composing_shrinks_no_character_more_than_assumed() -> None:
    """The longest text that composes to a character, from the longest other spelling of each of its parts."""
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    composed = [c for c in characters if unicodedata.decomposition(c) and unicodedata.decomposition(c)[0] != "<"]
    composed.append("각")  # Hangul is composed by rule: three parts of three bytes
    longest: dict[str, int] = {}
    for character in composed:
        parts = unicodedata.normalize("NFD", character)
        if len(parts) == 1:  # another spelling of one character
            longest[parts] = max(longest.get(parts, 0), len(character.encode()))
    for character in composed:
        if unicodedata.normalize("NFC", character) == character:
            parts = unicodedata.normalize("NFD", character)
            num_bytes = sum(max(longest.get(part, 0), len(part.encode())) for part in parts)
            assert num_bytes <= COMPOSED_SHRINKS * len(character.encode()), character
