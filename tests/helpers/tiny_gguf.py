"""Writes a tiny Hugging Face folder as a GGUF file, as llama.cpp's converter does; names come from the gguf package."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from safetensors.torch import load_file
from shiftruntime.layers.rope import inverse_frequencies
from shiftruntime.models.source import open_model

_NUMBERS = {
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF header says about its tokenizer."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    pre: str | None = None
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()

    @staticmethod
    def of_size(size: int) -> Vocabulary:
        return Vocabulary("llama", [f"t{i}" for i in range(size)], [1] * size)


def write_gguf(
    folder: Path,
    file: Path,
    architecture: str,
    vocabulary: Vocabulary | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    edit: Callable[[gguf.GGUFWriter, dict[str, torch.Tensor]], object] | None = None,
) -> None:
    """``edit`` may change the tensors (by GGUF name) and add keys before they are written."""
    raw = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, architecture)
    for key, name in _NUMBERS.items():
        if raw.get(key) is not None:
            writer.add_uint32(f"{architecture}.{name}", raw[key])
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", raw["rms_norm_eps"])
    tensors = _named(folder, raw, architecture)
    _add_rope(writer, tensors, raw, architecture, folder)
    add_vocabulary(writer, vocabulary or Vocabulary.of_size(raw["vocab_size"]))
    if edit is not None:
        edit(writer, tensors)
    for name, tensor in tensors.items():
        data = tensor.float().numpy()
        packed = gguf.quants.quantize(data, kind) if tensor.dim() == 2 else data
        writer.add_tensor(name, packed, raw_dtype=kind if tensor.dim() == 2 else None)
    finish(writer)


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(folder: Path, raw: dict[str, Any], architecture: str) -> dict[str, torch.Tensor]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, raw["num_hidden_layers"])
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, suffix = name.rpartition(".")
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = raw["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
            tensor = interleaved(tensor, heads)
        tensors[f"{names.get_name(stem)}.{suffix}"] = (
            tensor + 1 if architecture == "gemma3" and "norm" in stem else tensor
        )
    return tensors


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (i, i + head_dim / 2) of each head become neighbours."""
    half = tensor.shape[0] // heads // 2
    order = [h * 2 * half + i + part * half for h in range(heads) for i in range(half) for part in (0, 1)]
    return tensor[order]


def _add_rope(
    writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor], raw: dict[str, Any], architecture: str, folder: Path
) -> None:
    rope = raw["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_float32(f"{architecture}.rope.freq_base", rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_string(f"{architecture}.rope.scaling.type", rope["rope_type"])
        writer.add_float32(f"{architecture}.rope.scaling.factor", rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_uint32(
            f"{architecture}.rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        )
    if rope["rope_type"] == "llama3":
        config = open_model(folder).config
        plain, scaled = (
            inverse_frequencies(config.rope_theta, config.head_dim, scaling, torch.float64)
            for scaling in (None, config.rope_scaling)
        )
        tensors["rope_freqs.weight"] = torch.from_numpy((plain / scaled).numpy().astype(numpy.float32))
