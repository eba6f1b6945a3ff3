"""Text to ids and back. No torch here: the frontend process uses it.

From tokenizer.json in a folder, or from the header of a Gemma 3 GGUF, whose SentencePiece-BPE is rebuilt from its
tokens: the merges are not in the file, they follow from the order of the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from shiftruntime.errors import model_damaged, model_not_found, model_unsupported
from shiftruntime.models.gguf_file import GgufHeader, read_header
from shiftruntime.models.token_bytes import StreamDecoder, TokenBytes

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # token types of the GGUF specification
_SPACE = "\u2581"  # how SentencePiece writes a space


@dataclass(frozen=True)
class Tokenizer:
    """Encodes text and makes stream decoders."""

    backend: tokenizers.Tokenizer
    bytes_of: TokenBytes
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool  # what the model expects when nothing else is said

    @property
    def vocab_size(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Ids; ``add_bos`` None: as the model expects."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        wanted = self.adds_bos if add_bos is None else add_bos
        return [self.bos_id, *ids] if wanted and self.bos_id is not None else ids

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder(self.bytes_of)

    def decode(self, ids: Sequence[int]) -> str:
        """All text of ``ids``; special tokens have none."""
        stream = self.stream_decoder()
        return "".join([*(stream.push(token) for token in ids), stream.flush()])

    @staticmethod
    def from_folder(folder: Path) -> Tokenizer:
        """Raises StartupError if tokenizer.json is missing or damaged."""
        file = folder / "tokenizer.json"
        if not file.exists():
            raise model_not_found(f"{file} does not exist; a model folder needs it")
        try:
            raw = file.read_text(encoding="utf-8")
            spec = json.loads(raw)
            backend = tokenizers.Tokenizer.from_str(raw)
        except Exception as error:
            raise model_damaged(f"{file}: {error}") from error
        config, settings = _optional_json(folder / "config.json"), _optional_json(folder / "tokenizer_config.json")
        eos = _ids(config.get("eos_token_id")) + _ids(
            _optional_json(folder / "generation_config.json").get("eos_token_id")
        )
        bos = config.get("bos_token_id")
        adds_bos = bool(settings.get("add_bos_token", _template_adds(spec, bos)))
        return Tokenizer(backend, TokenBytes.of(backend, spec), bos, tuple(dict.fromkeys(eos)), adds_bos)

    @staticmethod
    def from_gguf(header: GgufHeader) -> Tokenizer:
        """Raises StartupError for a vocabulary of another kind than Gemma 3's."""
        meta = header.metadata
        kind, architecture = meta.get("tokenizer.ggml.model"), meta.get("general.architecture")
        if kind != "llama" or architecture != "gemma3":
            raise model_unsupported(
                f"{header.path}: tokenizer {kind!r} of architecture {architecture!r}; supported: llama of gemma3"
            )
        tokens, types = meta.get("tokenizer.ggml.tokens", ()), meta.get("tokenizer.ggml.token_type", ())
        if not tokens or len(tokens) != len(types):
            raise model_damaged(f"{header.path}: {len(tokens)} tokens and {len(types)} token types in the header")
        spelled = [_SPACE * len(t) if " " in t and not t.strip() else t for t in tokens]
        backend = _gemma_backend(spelled, types, tokens[meta.get("tokenizer.ggml.unknown_token_id", 3)])
        special = frozenset(i for i, kind in enumerate(types) if kind in (_CONTROL, _UNKNOWN))
        eos = _ids(meta.get("tokenizer.ggml.eos_token_id"))
        bos = meta.get("tokenizer.ggml.bos_token_id")
        adds_bos = bool(meta.get("tokenizer.ggml.add_bos_token", True))
        return Tokenizer(backend, TokenBytes.byte_fallback(spelled, special), bos, eos, adds_bos)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """From a .gguf file or a model folder, without opening the weights; raises StartupError."""
    path = Path(path)
    if not path.exists():
        raise model_not_found(f"{path} does not exist")
    return Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_gguf(read_header(path))


def _gemma_backend(tokens: list[str], types: Sequence[int], unknown: str) -> tokenizers.Tokenizer:
    """The BPE model of Gemma 3: spaces become ▁, words split before it, unknown characters fall back to bytes."""
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(tokens, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    control = [AddedToken(token, normalized=False, special=True) for token, kind in added if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(unknown, normalized=False, special=True), *control])
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == _USER_DEFINED])
    return backend


def _merges(tokens: list[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token; earlier tokens first, then the longer left part."""
    return [
        (token[:cut], token[cut:])
        for token in tokens
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in vocab and token[cut:] in vocab
    ]


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(i for i in value if isinstance(i, int)) if isinstance(value, list) else ()


def _optional_json(file: Path) -> dict[str, Any]:
    """An object, or nothing where there is no such file; raises StartupError(ModelDamaged)."""
    try:
        raw = json.loads(file.read_bytes()) if file.exists() else {}
    except ValueError as error:
        raise model_damaged(f"{file} is no JSON: {error}") from error
    return raw if isinstance(raw, dict) else {}


def _template_adds(spec: dict[str, Any], bos: int | None) -> bool:
    """Whether the post-processor of tokenizer.json puts the bos token in front."""
    if bos is None:
        return False
    processor = spec.get("post_processor") or {}
    stages = processor.get("processors", [processor])
    return any(bos in entry.get("ids", ()) for s in stages for entry in (s.get("special_tokens") or {}).values())
