"""Text of random tokens, one at a time: final as it comes, whole characters only, and in the end all their bytes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from shiftruntime.models.token_bytes import StreamDecoder, TokenBytes, byte_alphabet

SPECIAL = 256
MULTI = {257: "né", 258: "🙂", 259: " the", 260: "\x00\n"}
BYTE_CHARS = {byte: char for char, byte in byte_alphabet().items()}
IDS = st.lists(st.integers(0, 262), max_size=30)


def byte_level() -> TokenBytes:
    """One token per byte, then a special one, then some of several bytes; 261 and 262 are outside the vocabulary."""
    pieces = {byte: BYTE_CHARS[byte] for byte in range(256)} | {SPECIAL: "<|end|>"}
    pieces |= {token: "".join(BYTE_CHARS[byte] for byte in text.encode()) for token, text in MULTI.items()}
    alphabet = byte_alphabet()

    def to_bytes(piece: str) -> bytes:
        return piece.encode() if piece == "<|end|>" else bytes(alphabet[char] for char in piece)

    return TokenBytes(pieces.get, to_bytes, frozenset({SPECIAL}))


def byte_fallback() -> TokenBytes:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["<|end|>", *(text.replace(" ", "\u2581") for text in MULTI.values())]
    return TokenBytes.byte_fallback(pieces, frozenset({SPECIAL}))


def written(token: int, special: bytes = b"") -> bytes:
    if token < 256:
        return bytes([token])
    return special if token == SPECIAL else MULTI.get(token, "").encode()


@given(ids=IDS, fallback=st.booleans())
@settings(deadline=None)
def test_any_tokens_become_the_text_of_their_bytes(ids: list[int], fallback: bool) -> None:
    decoder = StreamDecoder(byte_fallback() if fallback else byte_level())
    pieces = [decoder.push(token) for token in ids]
    text = "".join(pieces) + decoder.flush()
    assert text == b"".join(written(token) for token in ids).decode("utf-8", "replace")
    shown = ""
    for count, piece in enumerate(pieces, start=1):
        shown += piece
        whole = b"".join(written(token) for token in ids[:count]).decode("utf-8", "replace")
        assert whole.startswith(shown), "text never changes afterwards"
        assert len(whole) - len(shown) <= 3, "nothing is held back but the beginning of one character"


@given(text=st.text(max_size=20), fallback=st.booleans())
@settings(deadline=None)
def test_text_cut_into_bytes_comes_back_and_shows_no_replacement(text: str, fallback: bool) -> None:
    decoder = StreamDecoder(byte_fallback() if fallback else byte_level())
    pieces = [decoder.push(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert decoder.flush() == ""
    assert [piece for piece in pieces if piece] == list(text), "each character when its last byte is there"


@given(ids=IDS)
@settings(deadline=None)
def test_special_tokens_show_only_where_they_are_asked_for(ids: list[int]) -> None:
    shows = replace(byte_level(), special=frozenset())
    decoder = StreamDecoder(shows)
    text = "".join(decoder.push(token) for token in ids) + decoder.flush()
    assert text == b"".join(written(token, b"<|end|>") for token in ids).decode("utf-8", "replace")
