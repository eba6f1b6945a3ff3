"""Exact mode: shifting between gears changes no bit of any logit or cached head; plain mode does not promise that."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import (
    LoadedModel,
    Run,
    one_step_each,
    random_sequences,
    random_steps,
    run_steps,
    save_gemma3,
    save_llama,
)
from shiftcore.layout import Gear, HeadLayout, allowed_gears
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.plain import PlainOps

LENGTHS = (23, 5, 30, 14)
SHAPE = {"num_attention_heads": 24, "head_dim": 8, "num_hidden_layers": 2}
# Ranks and kv heads: split evenly, replicated on all, and 2 heads over 6 ranks, where groups of sp2 cross their border.
LAYOUTS = ((2, 1), (2, 2), (3, 3), (4, 2), (4, 4), (6, 2), (6, 3), (8, 1), (8, 4))
DTYPES = (torch.float32, torch.float64)


def save(family: str, kv_heads: int, folder: Path) -> None:
    if family == "llama":
        save_llama(folder, num_key_value_heads=kv_heads, **SHAPE)
    else:
        save_gemma3(folder, num_key_value_heads=kv_heads, sliding_window_pattern=2, **SHAPE)


def assert_same_caches(run: Run, reference: Run, heads: HeadLayout) -> None:
    (whole,) = reference.caches
    for rank, cache in enumerate(run.caches):
        owned = heads.kv_range(rank)
        for mine, theirs in ((cache.k, whole.k), (cache.v, whole.v)):
            assert torch.equal(mine, theirs[..., owned.start : owned.stop, :]), f"rank {rank} cached other values"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("ranks", "kv_heads"), LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_random_gears_change_no_bit(family: str, ranks: int, kv_heads: int, dtype: torch.dtype, tmp_path: Path) -> None:
    save(family, kv_heads, tmp_path)
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
