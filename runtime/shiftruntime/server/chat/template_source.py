"""Where a model keeps its chat templates: files of its folder, metadata of a GGUF, or a file that the user names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiftruntime.errors import model_damaged
from shiftruntime.models.gguf_file import GgufHeader, read_header
from shiftruntime.server.chat.template import DEFAULT, TemplateSources

MAX_TEMPLATE_BYTES = 2**20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_GGUF_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_GGUF_TEMPLATE = "tokenizer.chat_template"


def read(model: str | Path, override: str | Path | None = None) -> TemplateSources:
    """The templates and special tokens of a model folder or .gguf file; ``override`` replaces all templates.

    Raises StartupError for files that are damaged or too large; a model without a template has no texts.
    """
    path = Path(model)
    sources = _from_folder(path) if path.is_dir() else _from_gguf(read_header(path))
    if override is None:
        return sources
    return TemplateSources({DEFAULT: _text(Path(override))}, sources.variables, str(override))


def _from_folder(folder: Path) -> TemplateSources:
    """chat_template.jinja and additional_chat_templates/*.jinja win over what tokenizer_config.json says."""
    settings = _json(folder / "tokenizer_config.json")
    texts = _declared(settings.get("chat_template"), folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    if file.exists():
        texts[DEFAULT] = _text(file)
    for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        texts[extra.stem] = _text(extra)
    special = _json(folder / "special_tokens_map.json") | settings
    variables = {name: _token(special[name]) for name in _SPECIAL if special.get(name)}
    return TemplateSources(texts, variables, str(file if file.exists() else folder / "tokenizer_config.json"))


def _from_gguf(header: GgufHeader) -> TemplateSources:
    meta = header.metadata
    names = {_GGUF_TEMPLATE: DEFAULT} | {
        f"{_GGUF_TEMPLATE}.{name}": str(name) for name in meta.get("tokenizer.chat_templates", ())
    }
    texts = {name: str(meta[key]) for key, name in names.items() if key in meta}
    for text in texts.values():
        _check_size(len(text), header.path)
    tokens = meta.get("tokenizer.ggml.tokens", ())
    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for key, name in _GGUF_SPECIAL.items()}
    variables = {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
    return TemplateSources(texts, variables, str(header.path))


def _declared(value: Any, file: Path) -> dict[str, str]:
    """One template, or a list of {"name", "template"}."""
    if value is None:
        return {}
    if isinstance(value, str):
        _check_size(len(value), file)
        return {DEFAULT: value}
    try:
        texts = {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError) as error:
        raise model_damaged(f"{file}: chat_template is neither a text nor a list of name and template") from error
    for text in texts.values():
        _check_size(len(text), file)
    return texts


def _token(value: Any) -> str:
    """A special token: its text, or an object that has it as content."""
    return str(value.get("content", "")) if isinstance(value, Mapping) else str(value)


def _text(file: Path) -> str:
    try:
        _check_size(file.stat().st_size, file)
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise model_damaged(f"chat template {file} cannot be read: {error}") from error


def _check_size(size: int, file: Path) -> None:
    if size > MAX_TEMPLATE_BYTES:
        raise model_damaged(f"{file}: a chat template of {size} bytes; at most {MAX_TEMPLATE_BYTES} are allowed")


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise model_damaged(f"{file} is no JSON: {error}") from error
    return value if isinstance(value, dict) else {}
