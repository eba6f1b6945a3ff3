"""What a model's authors advise for sampling: generation_config.json of a folder, or the header of a GGUF. No torch.

A request that names a value overrules it; what the model does not name stays None and gets the server's default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftruntime.errors import model_damaged
from shiftruntime.models.gguf_file import eos_ids, read_header

_FILE = "generation_config.json"
_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


@dataclass(frozen=True)
class GenerationDefaults:
    """None or empty: the model does not say."""

    temperature: float | None = None  # 0: greedy
    top_p: float | None = None
    top_k: int | None = None  # 0: no limit
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    eos_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()


def load_generation_defaults(model_path: str | Path) -> GenerationDefaults:
    """From a model folder or a .gguf file; a folder without generation_config.json says nothing.

    Raises StartupError(ModelDamaged) naming file, key and value. Keys that are not listed here are ignored.
    """
    path = Path(model_path)
    if path.is_dir():
        file = path / _FILE
        return read_generation_defaults(_json_object(file), file) if file.exists() else GenerationDefaults()
    metadata = read_header(path).metadata
    named = {key: metadata.get(name) for key, name in _GGUF_KEYS.items()}
    return read_generation_defaults(named | {"eos_token_id": list(eos_ids(metadata))}, path)


def read_generation_defaults(raw: Mapping[str, Any], file: Path) -> GenerationDefaults:
    """From the keys of generation_config.json; ``file`` is for the errors. Raises StartupError(ModelDamaged)."""

    def value(key: str, expected: str, holds: Callable[[Any], bool]) -> Any:
        found = raw.get(key)
        if found is not None and not holds(found):
            raise model_damaged(f"{file}: {key} is {found!r}, expected {expected}; correct or remove it")
        return found

    greedy = value("do_sample", "true or false", lambda v: isinstance(v, bool)) is False
    temperature = value("temperature", "a number of at least 0", lambda v: _number(v) and v >= 0)
    top_k = value("top_k", "a whole number of at least -1", lambda v: _whole(v) and v >= -1)
    eos = value("eos_token_id", "a token id or a list of them", lambda v: _is_id(v) or _list_of(v, _is_id))
    stops = value("stop_strings", "a string or a list of them", lambda v: _is_text(v) or _list_of(v, _is_text))
    return GenerationDefaults(
        temperature=0.0 if greedy else temperature,
        top_p=value("top_p", "a number in (0, 1]", lambda v: _number(v) and 0 < v <= 1),
        top_k=None if top_k is None else max(0, top_k),
        min_p=value("min_p", "a number in [0, 1]", lambda v: _number(v) and 0 <= v <= 1),
        repetition_penalty=value("repetition_penalty", "a positive number", lambda v: _number(v) and v > 0),
        max_new_tokens=value("max_new_tokens", "a positive whole number", lambda v: _whole(v) and v > 0),
        eos_ids=_tuple(eos),
        stop_strings=_tuple(stops),
    )


def _json_object(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_bytes())
    except ValueError as error:
        raise model_damaged(f"{file} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise model_damaged(f"{file} holds no JSON object")
    return raw


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _whole(value) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _list_of(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(holds(item) for item in value)


def _tuple(value: Any) -> tuple[Any, ...]:
    """One value, a list of them or None."""
    if value is None:
        return ()
    return tuple(dict.fromkeys(value)) if isinstance(value, list) else (value,)
