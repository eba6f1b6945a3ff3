"""Tokenizers rebuilt from GGUF headers. No torch here.

Two kinds: ``gpt2`` is byte-level BPE, whose merges are in the header while the expression that splits words is only
named; ``llama`` is SentencePiece-BPE, whose merges follow from the scores, or else the order, of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from shiftruntime.errors import ShiftError, model_damaged, model_unsupported
from shiftruntime.models.gguf_file import GgufHeader
from shiftruntime.models.token_bytes import TokenBytes

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # token types of the GGUF specification
_SPACE = "\u2581"  # how SentencePiece writes a space
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Splitter:
    """What a name in ``tokenizer.ggml.pre`` stands for."""

    digits: str | None  # expression for a group of digits; None: GPT-2's expression for everything
    single_digits: bool = False  # digits split off one by one before
    composed: bool = False  # characters are composed first (NFC)
    whole_words_first: bool = False  # a word that is a token needs no merges
    adds_bos: bool = False  # where the header does not say


_LLAMA3 = Splitter(r"\p{N}{1,3}", whole_words_first=True, adds_bos=True)
SPLITTERS: dict[str, Splitter] = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": Splitter(r"\p{N}", composed=True),
    "smollm": Splitter(None, single_digits=True),
    "gpt-2": Splitter(None),
}


@dataclass(frozen=True)
class GgufVocabulary:
    """The header's list of tokens; raises StartupError if its parts do not fit together."""

    path: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    meta: Mapping[str, Any]

    @staticmethod
    def of(header: GgufHeader) -> GgufVocabulary:
        meta = header.metadata
        tokens, types = meta.get("tokenizer.ggml.tokens", ()), meta.get("tokenizer.ggml.token_type", ())
        scores = meta.get("tokenizer.ggml.scores", ())
        if not tokens or len(tokens) != len(types):
            raise model_damaged(f"{header.path}: {len(tokens)} tokens and {len(types)} token types in the header")
        if scores and len(scores) != len(tokens):
            raise model_damaged(f"{header.path}: {len(tokens)} tokens and {len(scores)} scores in the header")
        spelled = tuple(_SPACE * len(t) if " " in t and not t.strip() else t for t in tokens)
        return GgufVocabulary(str(header.path), spelled, types, scores, meta)

    @property
    def special(self) -> frozenset[int]:
        return frozenset(i for i, kind in enumerate(self.types) if kind in (_CONTROL, _UNKNOWN))

    @property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}


def build(header: GgufHeader) -> tuple[tokenizers.Tokenizer, TokenBytes, bool]:
    """Backend, bytes of each token, whether the model expects the bos token in front; raises StartupError."""
    kind = header.metadata.get("tokenizer.ggml.model")
    makers: dict[str, Callable[[GgufVocabulary], tuple[tokenizers.Tokenizer, TokenBytes, bool]]] = {
        "gpt2": _byte_level, "llama": _sentencepiece,
    }  # fmt: skip
    if kind not in makers:
        raise model_unsupported(f"{header.path}: tokenizer {kind!r}; supported: {', '.join(makers)}")
    try:
        backend, bytes_of, adds_bos = makers[kind](GgufVocabulary.of(header))
    except ShiftError:
        raise
    except Exception as error:  # the tokenizers package raises nothing more specific
        raise model_damaged(f"{header.path}: unusable vocabulary: {error}") from error
    return backend, bytes_of, bool(header.metadata.get("tokenizer.ggml.add_bos_token", adds_bos))


def _byte_level(vocabulary: GgufVocabulary) -> tuple[tokenizers.Tokenizer, TokenBytes, bool]:
    name = vocabulary.meta.get("tokenizer.ggml.pre", "none")
    splitter = SPLITTERS.get(name)
    if splitter is None:
        raise model_unsupported(
            f"{vocabulary.path}: words split as {name!r} (tokenizer.ggml.pre); supported: {', '.join(SPLITTERS)}"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.meta.get("tokenizer.ggml.merges", ())]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=splitter.whole_words_first)
    )
    if splitter.composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(splitter)
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, vocabulary)
    added = {
        t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (_CONTROL, _USER_DEFINED)
    }
    return backend, TokenBytes.byte_level(_piece(vocabulary), vocabulary.special, added), splitter.adds_bos


def _pre_tokenizer(splitter: Splitter) -> pre_tokenizers.PreTokenizer:
    if splitter.digits is None:
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if splitter.single_digits else []
        return pre_tokenizers.Sequence([*digits, whole])
    expression = Regex("|".join((_WORDS, splitter.digits, _REST)))
    split = pre_tokenizers.Split(expression, "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(vocabulary: GgufVocabulary) -> tuple[tokenizers.Tokenizer, TokenBytes, bool]:
    """Spaces become ▁, one comes first unless the header says no, and unknown characters fall back to bytes."""
    unknown = vocabulary.tokens[_unknown_id(vocabulary)]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary.ids, merges=_merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    prefixed = bool(vocabulary.meta.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(unknown, normalized=False, special=True)])
    _add_tokens(backend, vocabulary)
    return backend, TokenBytes.byte_fallback(vocabulary.tokens, vocabulary.special, prefixed), True


def _unknown_id(vocabulary: GgufVocabulary) -> int:
    named = vocabulary.meta.get("tokenizer.ggml.unknown_token_id")
    return named if isinstance(named, int) else list(vocabulary.types).index(_UNKNOWN)


def _merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token; likelier tokens first, then earlier ones, then the longer left part.

    Gemma's tokens lie in the order of their merges, and its runs of spaces have senseless scores.
    """
    ids, scores = vocabulary.ids, vocabulary.scores
    order = list(range(len(vocabulary.tokens)))
    if scores and not str(vocabulary.meta.get("general.architecture")).startswith("gemma"):
        order.sort(key=lambda i: -scores[i])
    made = (vocabulary.tokens[i] for i in order)
    return [
        (token[:cut], token[cut:])
        for token in made
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in ids and token[cut:] in ids
    ]


def _add_tokens(backend: tokenizers.Tokenizer, vocabulary: GgufVocabulary) -> None:
    pairs = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    control = [AddedToken(token, normalized=False, special=True) for token, kind in pairs if kind == _CONTROL]
    backend.add_special_tokens(control)
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in pairs if kind == _USER_DEFINED])


def _piece(vocabulary: GgufVocabulary) -> Callable[[int], str | None]:
    tokens = vocabulary.tokens
    return lambda token: tokens[token] if 0 <= token < len(tokens) else None
