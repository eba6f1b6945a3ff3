"""Text to ids and back, from tokenizer.json in a folder or from a GGUF header. No torch: the frontend uses it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from shiftruntime.errors import model_damaged, model_not_found
from shiftruntime.models import gguf_tokenizer
from shiftruntime.models.gguf_file import GgufHeader, eos_ids, read_header
from shiftruntime.models.token_bytes import StreamDecoder, TokenBytes


class TooManyTokens(Exception):
    """A text has more tokens than its reader can use."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"the text has {num_tokens} tokens")
        self.num_tokens = num_tokens


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

    def encode(self, text: str, add_bos: bool | None = None, at_most: int | None = None) -> list[int]:
        """Ids; ``add_bos`` None: as the model expects. Raises TooManyTokens above ``at_most``.

        A batch of one: other threads run meanwhile, which they could not if it were no batch.
        """
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        wanted = self.adds_bos if add_bos is None else add_bos
        front = [self.bos_id] if wanted and self.bos_id is not None else []
        num_tokens = len(front) + len(encoding)
        if at_most is not None and num_tokens > at_most:
            raise TooManyTokens(num_tokens)  # before there is a list of them
        return front + encoding.ids

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
        settings = _optional_json(folder / "tokenizer_config.json")
        config, generation = _optional_json(folder / "config.json"), _optional_json(folder / "generation_config.json")
        text = config.get("text_config")
        inner = text if isinstance(text, dict) else {}
        eos = _ids(config.get("eos_token_id")) + _ids(generation.get("eos_token_id"))
        eos = eos or _ids(inner.get("eos_token_id")) or _named(backend, settings.get("eos_token"))
        # Models of several parts name it anywhere but at the top of config.json.
        (bos, *_) = (
            _ids(config.get("bos_token_id"))
            or _named(backend, settings.get("bos_token"))
            or _ids(generation.get("bos_token_id"))
            or _ids(inner.get("bos_token_id"))
            or (None,)
        )
        adds_bos = bool(settings.get("add_bos_token", _template_adds(spec, bos)))
        return Tokenizer(backend, TokenBytes.of(backend, spec), bos, tuple(dict.fromkeys(eos)), adds_bos)

    @staticmethod
    def from_gguf(header: GgufHeader) -> Tokenizer:
        """Raises StartupError."""
        backend, bytes_of, adds_bos = gguf_tokenizer.build(header)
        bos = header.metadata.get("tokenizer.ggml.bos_token_id")
        return Tokenizer(backend, bytes_of, bos, eos_ids(header.metadata), adds_bos)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """From a .gguf file or a model folder, without opening the weights; raises StartupError."""
    path = Path(path)
    if not path.exists():
        raise model_not_found(f"{path} does not exist")
    return Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_gguf(read_header(path))


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(i for i in value if isinstance(i, int)) if isinstance(value, list) else ()


def _named(backend: tokenizers.Tokenizer, token: object) -> tuple[int, ...]:
    """The id of a token as tokenizer_config.json gives it: its text, or an object with it."""
    content = token.get("content") if isinstance(token, dict) else token
    found = backend.token_to_id(content) if isinstance(content, str) else None
    return () if found is None else (found,)


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
