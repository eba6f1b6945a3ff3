"""Tokenizers rebuilt from GGUF headers give the ids and text of the tokenizer.json that the header was written from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from helpers.tiny_gguf import Vocabulary, add_vocabulary, finish
from shiftruntime.errors import StartupError
from shiftruntime.models.tokenizer import Tokenizer, load_tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

TEXTS = (
    "Hello world", "  two  spaces\n\nnew line\ttab \r\n", "你好，世界", "😀 é e\u0301", "     x\n\n\n\n     y", "", " ",
    "<s>special</s>", "a\u2581b", "def f(x):\n    return x**2  # µ", "it's WE'LL don't", "1234567 and 12 or 1",
    "Straße, naïve, Ελληνικά, русский", "\x00\x01\x7f", "the their there theirs", " <tool> 5",
)  # fmt: skip
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then there were theirs.\n\n", "it's what we'll do; they don't",
    "  for i in range(100):\n        print(i ** 2, 12345)\n", "Straße naïve Ελληνικά русский 2024 1999", "  two  three",
] * 3  # fmt: skip
# As the tokenizer.json files of Llama 3, Qwen 2 and SmolLM have them.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace("{1,3}", "")


def split(words: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), byte_level])


def llama3() -> Backend:
    backend = Backend(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = split(LLAMA3_WORDS)
    return backend


def qwen2() -> Backend:
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split(QWEN2_WORDS)
    return backend


def smollm() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


def gpt2() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


BYTE_LEVEL: dict[str, Callable[[], Backend]] = {
    "llama-bpe": llama3, "qwen2": qwen2, "smollm": smollm, "gpt-2": gpt2,
}  # fmt: skip


def trained(backend: Backend, size: int, alphabet: list[str], special: list[str]) -> Backend:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return backend


def saved(backend: Backend, folder: Path) -> Tokenizer:
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1}')
    return load_tokenizer(folder)


def write(file: Path, vocabulary: Vocabulary, architecture: str = "llama", **flags: bool) -> Tokenizer:
    writer = gguf.GGUFWriter(file, architecture)
    add_vocabulary(writer, vocabulary)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, flag in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    finish(writer)
    return load_tokenizer(file)


def in_order(backend: Backend) -> list[str]:
    vocab = backend.get_vocab(with_added_tokens=True)
    return sorted(vocab, key=vocab.__getitem__)


def assert_same(mine: Tokenizer, theirs: Tokenizer) -> None:
    rng = random.Random(0)
    ranges = ((1, 127), (32, 126), (0x20, 0x24F), (0x4E00, 0x4EFF), (0x1F300, 0x1F64F), (32, 32))
    noise = ["".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40))) for _ in range(300)]
    for text in (*TEXTS, *CORPUS, *noise):
        ids = mine.encode(text, add_bos=False)
        assert ids == theirs.encode(text, add_bos=False), text
        assert mine.decode(ids) == theirs.decode(ids), text


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_vocabularies(name: str, tmp_path: Path) -> None:
    special = ["<s>", "</s>"]
    backend = trained(BYTE_LEVEL[name](), 400, pre_tokenizers.ByteLevel.alphabet(), special)
    backend.decoder = decoders.ByteLevel()
    tokens = in_order(backend)
    merges = [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    types = [3 if token in special else 4 if token == "<tool>" else 1 for token in tokens]
    mine = write(tmp_path / "m.gguf", Vocabulary("gpt2", tokens, types, name, merges))
    assert_same(mine, saved(backend, tmp_path))
    assert (mine.bos_id, mine.eos_ids, mine.adds_bos) == (0, (1,), name == "llama-bpe")


@pytest.mark.parametrize("prefixed", [True, False])
def test_sentencepiece_vocabularies(prefixed: bool, tmp_path: Path) -> None:
    """The tokens are shuffled, so that only the scores tell the order of the merges."""
    spaces = normalizers.Replace(" ", "\u2581")
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefixed else spaces
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained(backend, 500, list("abcdefghijklmnopqrstuvwxyz.,;'"), ["<s>", "</s>", "<unk>", *bytes_])
    model = json.loads(backend.to_str())["model"]
    made = ["".join(pair) for pair in model["merges"]]
    tokens = in_order(backend)
    head, rest = tokens[:259], tokens[259:]
    random.Random(1).shuffle(rest)
    tokens = head + rest
    types = [
        2 if t == "<unk>" else 3 if t in ("<s>", "</s>") else 6 if t in bytes_ else 4 if t == "<tool>" else 1
        for t in tokens
    ]
    scores = [-float(made.index(token)) if token in made else -1000.0 for token in tokens]
    mine = write(tmp_path / "m.gguf", Vocabulary("llama", tokens, types, scores=scores), add_space_prefix=prefixed)

    ids = {token: i for i, token in enumerate(tokens)}
    theirs = Backend(
        models.BPE(
            vocab=ids, merges=[tuple(pair) for pair in model["merges"]], unk_token="<unk>", fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    theirs.normalizer = backend.normalizer
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    stages = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    theirs.decoder = decoders.Sequence(stages)
    theirs.add_special_tokens(["<unk>", "<s>", "</s>"])
    theirs.add_tokens([AddedToken("<tool>", normalized=False)])
    assert_same(mine, saved(theirs, tmp_path))
    assert mine.adds_bos


def test_the_header_decides_about_the_bos_token_and_ends_of_turns(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    add_vocabulary(writer, Vocabulary("gpt2", ["a", "b", "c"], [1, 3, 3], "qwen2"))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(1)
    writer.add_add_bos_token(True)
    finish(writer)
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    assert (tokenizer.adds_bos, tokenizer.eos_ids) == (True, (2, 1))
    assert tokenizer.encode("a") == [1, 0]


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        (Vocabulary("bert", ["a"], [1]), "tokenizer 'bert'; supported: gpt2, llama"),
        (Vocabulary("gpt2", ["a"], [1], "tekken"), "words split as 'tekken'"),
        (Vocabulary("gpt2", ["a"], [1]), "words split as 'none'"),
        (Vocabulary("gpt2", ["a", "b"], [1], "qwen2"), "2 tokens and 1 token types"),
        (Vocabulary("llama", ["a", "b"], [2, 1], scores=[1.0]), "2 tokens and 1 scores"),
        (Vocabulary("llama", ["a", "b"], [1, 1]), "unusable vocabulary"),
        (Vocabulary("gpt2", ["a"], [1], "qwen2", ["a b"]), "unusable vocabulary"),
        (Vocabulary("gpt2", ["a"], [1], "qwen2", ["ab"]), "unusable vocabulary"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_vocabularies_that_cannot_be_rebuilt_are_refused(vocabulary: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=words):
        write(tmp_path / "m.gguf", vocabulary)
