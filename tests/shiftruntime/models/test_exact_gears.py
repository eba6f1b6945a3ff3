"""Exact mode: shifting between gears changes no bit of any logit or cached head; plain mode does not promise that."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_families import save_gemma2, save_gemma3, save_llama, save_mistral, save_qwen2, save_qwen3
from helpers.tiny_models import LoadedModel, Run, one_step_each, random_sequences, random_steps, run_steps
from shiftcore.layout import Gear, HeadLayout, allowed_gears
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.plain import PlainOps

LENGTHS = (23, 5, 30, 14)
SHAPE = {"num_attention_heads": 24, "head_dim": 8, "num_hidden_layers": 2}
# Ranks and kv heads: split evenly, replicated on all, and 2 heads over 6 ranks, where groups of sp2 cross their border.
LAYOUTS = ((2, 1), (2, 2), (3, 3), (4, 2), (4, 4), (6, 2), (6, 3), (8, 1), (8, 4))
DTYPES = (torch.float32, torch.float64)


YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
# Each trait that the first two families lack, in fewer layouts.
MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "llama": (save_llama, {}),
    "gemma3": (save_gemma3, {"sliding_window_pattern": 2}),
    "llama-biased": (save_llama, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (save_mistral, {}),
    "qwen2-yarn": (save_qwen2, {"hidden_size": 192, "rope_parameters": YARN}),
    "qwen3": (save_qwen3, {}),
    "gemma2": (save_gemma2, {}),
}
CASES = [(name, layout, dtype) for name in ("llama", "gemma3") for layout in LAYOUTS for dtype in DTYPES] + [
    (name, layout, dtype)
    for name in list(MODELS)[2:]
    for layout, dtype in (((4, 2), torch.float64), ((6, 3), torch.float32), ((8, 4), torch.float32))
]


def save(name: str, kv_heads: int, folder: Path) -> None:
    saver, overrides = MODELS[name]
    shape = {key: value for key, value in SHAPE.items() if saver is not save_qwen2 or key != "head_dim"}
    saver(folder, **(shape | overrides | {"num_key_value_heads": kv_heads}))


def assert_same_caches(run: Run, reference: Run, heads: HeadLayout) -> None:
    (whole,) = reference.caches
    for rank, cache in enumerate(run.caches):
        owned = heads.kv_range(rank)
        for mine, theirs in ((cache.k, whole.k), (cache.v, whole.v)):
            assert torch.equal(mine, theirs[..., owned.start : owned.stop, :]), f"rank {rank} cached other values"


@pytest.mark.parametrize(("name", "layout", "dtype"), CASES, ids=str)
def test_random_gears_change_no_bit(name: str, layout: tuple[int, int], dtype: torch.dtype, tmp_path: Path) -> None:
    ranks, kv_heads = layout
    save(name, kv_heads, tmp_path)
    rng = random.Random(ranks * 100 + kv_heads)
    sequences = random_sequences(LENGTHS, rng)
    alone = LoadedModel.load(tmp_path, 1, dtype)
    reference = run_steps(alone, one_step_each(sequences, Gear(1, 1)), sequences, ExactOps)
    steps = random_steps(sequences, allowed_gears(Gear(ranks, 1)), rng)
    run = run_steps(LoadedModel.load(tmp_path, ranks, dtype), steps, sequences, ExactOps)
    for mine, theirs in zip(run.logits, reference.logits, strict=True):
        assert not theirs.isnan().any()
        assert torch.equal(mine, theirs)
    assert_same_caches(run, reference, alone.source.config.heads(ranks))


def test_plain_mode_differs_between_gears(tmp_path: Path) -> None:
    """The comparison above can see differences: without exact arithmetic it would fail."""
    save("llama", 4, tmp_path)
    sequences = random_sequences(LENGTHS, random.Random(0))
    alone = run_steps(LoadedModel.load(tmp_path, 1), one_step_each(sequences, Gear(1, 1)), sequences, PlainOps)
    shared = run_steps(LoadedModel.load(tmp_path, 4), one_step_each(sequences, Gear(2, 2)), sequences, PlainOps)
    assert any(not torch.equal(a, b) for a, b in zip(alone.logits, shared.logits, strict=True))
