"""A folder as Hugging Face writes it: config.json, *.safetensors with an optional index, tokenizer.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from shiftruntime.errors import model_damaged, model_not_found, model_unsupported
from shiftruntime.models import gemma2, gemma3, llama, qwen
from shiftruntime.models.family import Family, Piece, token_ids
from shiftruntime.models.shapes import tensor_shapes
from shiftruntime.models.tokenizer import Tokenizer

FAMILIES: dict[str, Family] = dict.fromkeys(llama.ARCHITECTURES, llama.FAMILY)
FAMILIES |= dict.fromkeys(llama.MISTRAL_ARCHITECTURES, llama.MISTRAL_FAMILY)
FAMILIES |= dict.fromkeys(qwen.QWEN2_ARCHITECTURES, qwen.QWEN2_FAMILY)
FAMILIES |= dict.fromkeys(qwen.QWEN3_ARCHITECTURES, qwen.QWEN3_FAMILY)
FAMILIES |= dict.fromkeys(gemma2.ARCHITECTURES, gemma2.FAMILY)
FAMILIES |= dict.fromkeys(gemma3.ARCHITECTURES, gemma3.FAMILY)
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header
_MAX_HEADER_BYTES = 100_000_000


class SafetensorsSource:
    """Reads the configuration and all headers at once, weights only when asked; raises StartupError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = _read_json(path / "config.json", "a model folder needs it")
        architectures = raw.get("architectures") or ["none"]
        family = FAMILIES.get(architectures[0])
        if family is None:
            raise model_unsupported(
                f"{path / 'config.json'}: architecture {architectures[0]!r}; supported: {', '.join(FAMILIES)}"
            )
        self._family = family
        generation = path / "generation_config.json"
        more_eos = token_ids(_read_json(generation, "").get("eos_token_id")) if generation.exists() else ()
        config = family.read(raw, path / "config.json")
        self.config = dataclasses.replace(config, eos_ids=tuple(dict.fromkeys(config.eos_ids + more_eos)))
        self._files = _weight_files(path)
        self._wanted = self._plan({name: file for file in self._files for name in _check_header(file)})

    def _plan(self, home: dict[str, Path]) -> dict[Path, list[tuple[str, str]]]:
        """File → (canonical name, name in the file) of what to read from it."""
        wanted: dict[Path, list[tuple[str, str]]] = {}
        for canonical, shape in tensor_shapes(self.config).items():
            name = self._family.file_name(canonical)
            if name not in home:
                raise model_damaged(f"{self.path}: tensor {name} with shape {shape} is in no safetensors file")
            wanted.setdefault(home[name], []).append((canonical, name))
        return wanted

    def pieces(self) -> Iterator[Piece]:
        """All tensors, file by file; raises StartupError(ModelDamaged) for a wrong shape."""
        shapes = tensor_shapes(self.config)
        for file, names in self._wanted.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    for canonical, name in names:
                        yield Piece(canonical, 0, _checked(opened.get_tensor(name), shapes[canonical], name, file))
            except SafetensorError as error:
                raise model_damaged(f"{file}: {error}") from error

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.path)


def _checked(tensor: Tensor, shape: tuple[int, ...], name: str, file: Path) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise model_damaged(f"{file}: tensor {name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor


def _read_json(file: Path, why: str) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise model_not_found(f"{file} does not exist; {why}") from error
    except ValueError as error:
        raise model_damaged(f"{file} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise model_damaged(f"{file} holds no JSON object")
    return raw


def _weight_files(path: Path) -> tuple[Path, ...]:
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index, "").get("weight_map")
        if not isinstance(weight_map, dict):
            raise model_damaged(f"{index} has no weight_map")
        files = tuple(path / Path(str(name)).name for name in sorted(set(weight_map.values())))
    else:
        files = tuple(sorted(path.glob("*.safetensors")))
    if not files:
        raise model_not_found(f"{path} holds no *.safetensors file")
    for file in files:
        if not file.exists():
            raise model_damaged(f"{file} is named in {index.name} but does not exist")
    return files


def _check_header(file: Path) -> list[str]:
    """Names of the tensors in a file; raises StartupError(ModelDamaged) if the file is shorter than it says."""
    actual = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(_MAX_HEADER_BYTES, actual - _LENGTH_BYTES):
            raise model_damaged(f"{file}: header of {length} bytes in a file of {actual} bytes")
        try:
            header = json.loads(opened.read(length))
            spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
            expected = _LENGTH_BYTES + length + max((end for _, end in spans.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise model_damaged(f"{file}: unreadable header: {error}") from error
    if actual != expected:
        raise model_damaged(f"{file}: {actual} bytes, expected {expected}; it is truncated or damaged")
    return list(spans)
