"""A folder as Hugging Face writes it: config.json, *.safetensors with an optional index, tokenizer.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from shiftruntime.errors import model_damaged, model_unsupported
from shiftruntime.models import gemma2, gemma3, llama, mixtral, qwen, qwen3_moe
from shiftruntime.models.family import Family, Piece, Reading, token_ids
from shiftruntime.models.quantised import STORED_DTYPES, Quantisation, dequantise, read_quantisation
from shiftruntime.models.safetensors_header import StoredTensor, read_json, stored_tensors
from shiftruntime.models.shapes import tensor_shapes
from shiftruntime.models.tokenizer import Tokenizer

FAMILIES: dict[str, Family] = dict.fromkeys(llama.ARCHITECTURES, llama.FAMILY)
FAMILIES |= dict.fromkeys(llama.MISTRAL_ARCHITECTURES, llama.MISTRAL_FAMILY)
FAMILIES |= dict.fromkeys(qwen.QWEN2_ARCHITECTURES, qwen.QWEN2_FAMILY)
FAMILIES |= dict.fromkeys(qwen.QWEN3_ARCHITECTURES, qwen.QWEN3_FAMILY)
FAMILIES |= dict.fromkeys(mixtral.ARCHITECTURES, mixtral.FAMILY)
FAMILIES |= dict.fromkeys(qwen3_moe.ARCHITECTURES, qwen3_moe.FAMILY)
FAMILIES |= dict.fromkeys(gemma2.ARCHITECTURES, gemma2.FAMILY)
FAMILIES |= dict.fromkeys(gemma3.ARCHITECTURES, gemma3.FAMILY)
FAMILIES |= dict.fromkeys(gemma3.WRAPPER_ARCHITECTURES, gemma3.WRAPPER_FAMILY)
_DTYPES = ("F64", "F32", "F16", "BF16")
# Written by old converters, and computed by us: RoPE frequencies, and attention masks.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".self_attn.bias", ".self_attn.masked_bias")


class SafetensorsSource:
    """Reads the configuration and all headers at once, weights only when asked; raises StartupError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = read_json(path / "config.json", "a model folder needs it")
        self._family = _family(raw, path)
        self._quantisation = read_quantisation(raw, path / "config.json")
        generation = path / "generation_config.json"
        more_eos = token_ids(read_json(generation).get("eos_token_id")) if generation.exists() else ()
        config = self._family.read(raw, path / "config.json")
        self.config = dataclasses.replace(config, eos_ids=tuple(dict.fromkeys(config.eos_ids + more_eos)))
        self._sides: dict[str, Path] = {}  # scales and zero points of quantised weights
        self._wanted = self._plan(stored_tensors(path))

    @property
    def quantisation(self) -> str:
        return "none" if self._quantisation is None else self._quantisation.kind

    def _plan(self, stored: Mapping[str, StoredTensor]) -> dict[Path, list[Reading]]:
        """What to read from each file."""
        wanted: dict[Path, list[Reading]] = {}
        used: set[str] = set()
        for canonical, shape in tensor_shapes(self.config).items():
            for reading in self._family.readings(canonical, shape, stored):
                tensor = stored.get(reading.name)
                if tensor is None:
                    what = f"tensor {reading.name} with shape {reading.shape}"
                    raise model_damaged(f"{self.path}: {what} is in no safetensors file")
                self._check(tensor, reading, stored)
                wanted.setdefault(tensor.file, []).append(reading)
                used.add(reading.name)
        self._refuse_rest({name: tensor for name, tensor in stored.items() if name not in used})
        return wanted

    def _check(self, tensor: StoredTensor, reading: Reading, stored: Mapping[str, StoredTensor]) -> None:
        where = f"{tensor.file}: tensor {reading.name}"
        if tensor.shape != reading.shape:
            raise model_damaged(f"{where} has shape {tensor.shape}, expected {reading.shape}")
        if self._quantisation and tensor.dtype in STORED_DTYPES:
            for side in self._quantisation.sides(reading.name):
                if side not in stored:
                    raise model_damaged(f"{where} has dtype {tensor.dtype}, and {side} is in no safetensors file")
                self._sides[side] = stored[side].file
        elif tensor.dtype not in _DTYPES:
            raise model_unsupported(f"{where} has dtype {tensor.dtype}; supported: {', '.join(_DTYPES)}")

    def _refuse_rest(self, stored: Mapping[str, StoredTensor]) -> None:
        """A tensor that nobody reads (a bias, a scale, one more layer) would change what the model says."""
        head = self._family.file_name("lm_head")  # some files repeat a tied embedding under this name
        rest = [name for name in stored if not name.endswith(_IGNORED_SUFFIXES) and name != head]
        rest = [name for name in rest if not name.startswith(self._family.ignored)]
        if self._quantisation:
            rest = [name for name in rest if not self._quantisation.is_side(name)]
        if rest:
            more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
            raise model_unsupported(
                f"{stored[rest[0]].file}: tensor {rest[0]}{more} has no meaning for {self.config.architecture} "
                f"with this config.json; are both of the same model?"
            )

    def pieces(self) -> Iterator[Piece]:
        """All tensors, file by file; raises StartupError(ModelDamaged)."""
        dimensions = {name: len(shape) for name, shape in tensor_shapes(self.config).items()}
        for file, readings in self._wanted.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    for r in readings:
                        rows = opened.get_slice(r.name)[r.part] if r.part else opened.get_tensor(r.name)
                        if self._quantisation and rows.itemsize == 1:
                            rows = self._dequantised(r.name, rows, self._quantisation)
                        one_of_many = rows.dim() < dimensions[r.canonical]  # an expert
                        yield Piece(r.canonical, r.first_row, rows[None] if one_of_many else rows)
            except SafetensorError as error:
                raise model_damaged(f"{file}: {error}") from error

    def _dequantised(self, name: str, rows: Tensor, quantisation: Quantisation) -> Tensor:
        sides: list[Tensor] = []
        for side in quantisation.sides(name):
            with safe_open(self._sides[side], framework="pt") as opened:  # it may lie in another file
                sides.append(opened.get_tensor(side))
        scale, zero_point = [*sides, None][:2]
        assert scale is not None, "every scheme has a scale"
        try:
            return dequantise(rows, scale, zero_point, quantisation.block)
        except ValueError as error:
            raise model_damaged(f"{self.path}: tensor {name}: {error}") from error

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.path)


def _family(raw: Mapping[str, Any], path: Path) -> Family:
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    family = FAMILIES.get(str(name))
    if family is None:
        raise model_unsupported(f"{path / 'config.json'}: architecture {name!r}; supported: {', '.join(FAMILIES)}")
    return family
