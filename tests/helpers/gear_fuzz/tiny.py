"""Tiny random models as a configuration and canonical tensors; no file, no Hugging Face."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from shiftcore.layout import HeadLayout, LayoutError
from shiftruntime.config import Experts, ModelConfig
from shiftruntime.models.family import Piece
from shiftruntime.models.shapes import tensor_shapes
from shiftruntime.models.source import ModelSource
from shiftruntime.models.tokenizer import Tokenizer
from shiftruntime.models.weights import fill, plan_arena
from shiftruntime.parallel.arena import create_memory
from shiftruntime.worker.rank import DTYPES

RANKS = (2, 3, 4, 6, 8)
_LAYERS = 2
_WINDOW = 7  # shorter than most sequences

# What a family adds to the common shape. Kinds of layers, norms and biases matter here, not the names of tensors.
FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": _WINDOW, "sliding_layers": (True,) * _LAYERS},
    "qwen2": {"attention_bias": True, "tie_embeddings": True},
    "biased": {"attention_bias": True, "output_bias": True, "mlp_bias": True},
    "qwen3": {"qk_norm": True},
    # Fewer experts than some pods have ranks, and shares of unequal size.
    "mixtral": {"experts": Experts(count=5, per_token=2, intermediate_size=24, sparse_layers=(True, True))},
    "qwen3_moe": {
        "qk_norm": True,
        "experts": Experts(9, 3, intermediate_size=24, sparse_layers=(False, True), normalised=False),
    },
    "gemma2": {
        "sliding_window": _WINDOW, "sliding_layers": (True, False), "post_norms": True, "norm_offset": 1.0,
        "activation": "gelu_tanh", "embedding_multiplier": 48**0.5, "tie_embeddings": True, "attention_soft_cap": 5.0,
        "logit_soft_cap": 10.0,
    },
    "gemma3": {
        "sliding_window": _WINDOW, "sliding_layers": (True, False), "qk_norm": True, "post_norms": True,
        "norm_offset": 1.0, "activation": "gelu_tanh", "embedding_multiplier": 48**0.5, "tie_embeddings": True,
        "rope_theta_local": 100.0, "attention_scale": 0.3,
    },
}  # fmt: skip
_ONE_KV_HEAD = ("gemma3",)


def config(family: str, ranks: int, kv_heads: int, vocabulary: int) -> ModelConfig:
    """Head counts that P divides; inputs of 48, which exact mode cuts into 24 leaves for any P."""
    values: dict[str, Any] = {
        "hidden_size": 48, "num_layers": _LAYERS, "num_query_heads": _query_heads(ranks), "num_kv_heads": kv_heads,
        "head_dim": 48 // _query_heads(ranks), "intermediate_size": 48, "vocab_size": vocabulary,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1000.0,
    }  # fmt: skip
    return ModelConfig(architecture=family, **(values | FAMILIES[family]))


def _query_heads(ranks: int) -> int:
    return 12 if ranks % 3 == 0 else 8


def kv_head_choices(family: str, ranks: int) -> list[int]:
    """Every number of kv heads that this number of ranks can hold: split, one each, replicated."""
    if family in _ONE_KV_HEAD:
        return [1]
    return [count for count in range(1, _query_heads(ranks) + 1) if _fits(_query_heads(ranks), count, ranks)]


def _fits(query_heads: int, kv_heads: int, ranks: int) -> bool:
    try:
        HeadLayout(query_heads, kv_heads, ranks)
    except LayoutError:
        return False
    return (48 // query_heads) % 2 == 0


@dataclass(frozen=True)
class RandomSource:
    """A models.source.ModelSource whose tensors are noise, each drawn by its name."""

    config: ModelConfig
    path: Path = Path("random")
    quantisation: str = "none"

    def pieces(self) -> Iterator[Piece]:
        for name, shape in tensor_shapes(self.config).items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name.endswith("norm"):
                rows = 1.0 + 0.3 * noise - self.config.norm_offset
            else:
                rows = noise * 1.5 * shape[-1] ** -0.5
            yield Piece(name, 0, rows)

    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError("noise has no text")


@dataclass(frozen=True)
class LoadedWeights:
    """Weights in a memory file, as all ranks of a pod map them."""

    config: ModelConfig
    dtype: str
    fd: int
    num_bytes: int


@cache
def load(family: str, ranks: int, kv_heads: int, vocabulary: int, dtype: str, pod: int) -> LoadedWeights:
    """The model that suits ``ranks`` ranks, laid out for a pod of ``pod`` ranks: the same values for each of them."""
    return load_source(RandomSource(config(family, ranks, kv_heads, vocabulary)), dtype, pod)


def load_source(source: ModelSource, dtype: str, pod: int) -> LoadedWeights:
    layout = plan_arena(source.config, DTYPES[dtype], pod)
    fd = create_memory("shift-fuzz", layout.total_bytes)
    fill(source, layout, mmap(fd, layout.total_bytes))
    return LoadedWeights(source.config, dtype, fd, layout.total_bytes)
