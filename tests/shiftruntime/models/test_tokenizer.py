"""Tokenizers: ids and text as transformers has them, text streamed without broken characters, torch left out."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
from helpers.tiny_models import save_tokenizer
from shiftruntime.errors import StartupError
from shiftruntime.models.token_bounds import longest_token_bytes
from shiftruntime.models.tokenizer import Tokenizer, TooManyTokens, load_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

TEXTS = (
    "Hello world", "  two  spaces\n\nnew line\ttab \r\n", "你好，世界", "😀👨‍👩‍👧 é e\u0301 ﷽", "     x\n\n\n\n     y",
    "<start_of_turn>user\nhi<end_of_turn>", "a\u2581b", "def f(x):\n    return x**2  # µ", "<b>html</b><unused5>",
    "\x00\x01\x7f", "", " ", "Straße, naïve, Ελληνικά, русский, العربية, हिन्दी, 日本語, 한국어", "1234567890" * 3,
)  # fmt: skip
BOS = "<s>"  # of the tiny tokenizer, its id is 0
BUILD_SECONDS = 8.0  # of processor time, about 2; wall time would measure the neighbours


@pytest.fixture(scope="module")
def gemma(gemma_gguf: Path) -> Tokenizer:
    start = time.process_time()
    tokenizer = load_tokenizer(gemma_gguf)
    assert time.process_time() - start < BUILD_SECONDS
    return tokenizer


@pytest.mark.oracle
def test_gemma_equals_transformers(gemma: Tokenizer, gemma_gguf: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(gemma_gguf.parent, gguf_file=gemma_gguf.name)
    rng = random.Random(0)
    vocabulary = list(theirs.get_vocab())
    mixed = ["".join(rng.choices(vocabulary, k=rng.randint(1, 12))).replace("\u2581", " ") for _ in range(500)]
    ranges = ((1, 127), (0x20, 0x24F), (0x4E00, 0x4EFF), (0x1F300, 0x1F64F), (32, 32))
    noise = ["".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40))) for _ in range(500)]
    for text in (*TEXTS, *mixed, *noise):
        ids = gemma.encode(text)
        assert ids == theirs.encode(text), text
        assert gemma.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert gemma.vocab_size == len(theirs) == 262_144


def test_gemma_special_ids(gemma: Tokenizer) -> None:
    assert (gemma.bos_id, gemma.eos_ids, gemma.adds_bos) == (2, (1,), True)
    assert gemma.encode("hi", add_bos=False) == gemma.encode("hi")[1:]
    assert gemma.decode([2, 105, 1]) == ""
    assert gemma.decode([10**9]) == ""  # beyond the vocabulary: no text


def test_no_text_has_fewer_tokens_than_the_longest_of_them_allows(gemma: Tokenizer) -> None:
    longest = longest_token_bytes(gemma.backend)
    assert longest is not None
    assert longest < 100
    for text in (*TEXTS, "a" * 300, " " * 300):
        assert len(gemma.encode(text, add_bos=False)) * longest >= len(text.encode()), text


def test_too_many_tokens_are_counted_with_bos_and_never_listed(gemma: Tokenizer) -> None:
    assert len(gemma.encode("a b c", at_most=4)) == 4
    with pytest.raises(TooManyTokens, match="4 tokens"):
        gemma.encode("a b c", at_most=3)


def test_stream_is_final_text(gemma: Tokenizer) -> None:
    text = "a 😀𓀀 ﷽ é\x00 b"
    stream = gemma.stream_decoder()
    pieces = [stream.push(token) for token in gemma.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_cut_character_appears_only_at_the_end(gemma: Tokenizer) -> None:
    smile = [gemma.backend.token_to_id(f"<0x{byte:02X}>") or 0 for byte in "𓀀".encode()]
    stream = gemma.stream_decoder()
    assert [stream.push(token) for token in smile[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert gemma.decode(smile) == "𓀀"
    assert gemma.decode([*smile[:2], *gemma.encode("x", add_bos=False)]) == "\ufffdx"


def test_byte_level_folder(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": [1, 5]}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (0, (1, 5, 9), True)
    ids = tokenizer.encode("Hi there")
    assert ids[0] == 0
    assert tokenizer.decode(ids) == "Hi there"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"bos_token": BOS, "eos_token": BOS}),
        ("tokenizer_config.json", {"bos_token": {"content": BOS}, "eos_token": {"content": BOS}}),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 0}),
        ("config.json", {"text_config": {"bos_token_id": 0, "eos_token_id": [0]}}),
    ],
    ids=["tokenizer", "tokenizer-object", "generation", "text"],
)
def test_the_first_token_is_found_where_config_json_does_not_name_it(
    tmp_path: Path, file: str, content: dict[str, object]
) -> None:
    """The larger Gemma 3 have it in other files, and a prompt without it is answered with nonsense."""
    save_tokenizer(tmp_path)
    files = {"config.json": {}, "tokenizer_config.json": {"add_bos_token": True}}
    for name, values in (files | {file: files.get(file, {}) | content}).items():
        (tmp_path / name).write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (0, (0,), True)
    assert tokenizer.encode("Hi")[0] == 0


def test_config_json_has_the_first_word_on_the_first_token(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 7, "eos_token_id": 3}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": BOS}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (7, (3,))


def test_sentencepiece_folder_strips_the_first_space(tmp_path: Path) -> None:
    """As Llama 2 does: encoding puts a space before the first word, decoding takes it away."""
    vocab = {token: i for i, token in enumerate(["<unk>", "\u2581", "a", "b", "<0xC3>", "<0xA9>"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("a é b")
    assert tokenizer.decode(ids) == "a é b" == backend.decode(ids)
    assert tokenizer.bos_id is None


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"tokenizer\.json") as refusal:
        load_tokenizer(tmp_path)
    assert refusal.value.reason == "ModelNotFound"
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(StartupError, match=r"tokenizer\.json") as refusal:
        load_tokenizer(tmp_path)
    assert refusal.value.reason == "ModelDamaged"


def test_does_not_import_torch() -> None:
    code = "import sys, shiftruntime.models.tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
