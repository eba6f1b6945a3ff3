"""Our decoder in every gear against Hugging Face transformers, eager, float32, on tiny random models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny_models import (
    LoadedModel,
    one_step_each,
    random_sequences,
    random_steps,
    run_steps,
    save_gemma3,
    save_llama,
    save_mistral,
)
from shiftcore.layout import Gear, allowed_gears

pytestmark = pytest.mark.oracle

LENGTHS = (29, 5, 34)
MAX_DIFFERENCE = 1e-4
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
Saver = Callable[..., transformers.PreTrainedModel]
MODELS: dict[str, tuple[Saver, dict[str, Any]]] = {
    "llama": (save_llama, {}),
    "llama-tied-biased": (save_llama, {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-one-kv-head": (save_llama, {"num_key_value_heads": 1}),
    "llama3-rope": (save_llama, {"rope_parameters": LLAMA3_ROPE}),
    "mistral-sliding": (save_mistral, {}),
    "gemma3": (save_gemma3, {}),
    "gemma3-two-kv-heads": (save_gemma3, {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 6}),
}
CASES = [(name, gear) for name in MODELS for ranks in (1, 2, 4) for gear in allowed_gears(Gear(ranks, 1))]


def reference(model: transformers.PreTrainedModel, sequences: list[list[int]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(torch.tensor([s])).logits[0].log_softmax(-1) for s in sequences]


def largest_difference(logits: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(logits, expected, strict=True)
    return max(float((mine.log_softmax(-1) - theirs).abs().max()) for mine, theirs in pairs)


@pytest.mark.parametrize(("name", "gear"), CASES, ids=str)
def test_logprobs_agree_with_transformers(name: str, gear: Gear, tmp_path: Path) -> None:
    saver, overrides = MODELS[name]
    rng = random.Random(gear.ranks)
    sequences = random_sequences(LENGTHS, rng)
    expected = reference(saver(tmp_path, **overrides), sequences)
    model = LoadedModel.load(tmp_path, gear.ranks)
    whole = run_steps(model, one_step_each(sequences, gear), sequences)
    chunked = run_steps(model, random_steps(sequences, (gear,), rng), sequences)
    assert largest_difference(whole.logits, expected) <= MAX_DIFFERENCE
    assert largest_difference(chunked.logits, expected) <= MAX_DIFFERENCE


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_logprobs_agree_while_shifting(name: str, tmp_path: Path) -> None:
    saver, overrides = MODELS[name]
    rng = random.Random(9)
    sequences = random_sequences(LENGTHS, rng)
    expected = reference(saver(tmp_path, **overrides), sequences)
    steps = random_steps(sequences, allowed_gears(Gear(4, 1)), rng)
    run = run_steps(LoadedModel.load(tmp_path, 4), steps, sequences)
    assert largest_difference(run.logits, expected) <= MAX_DIFFERENCE


def test_a_wrong_head_order_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle would notice ranks that disagree about which heads are whose."""
    from shiftruntime.layers import exchange

    original = exchange.heads_to_rows

    def swapped(x: torch.Tensor, plan: exchange.HeadPlan, comm: exchange.Exchanger) -> torch.Tensor:
        rows = original(x, plan, comm)
        return rows if len(plan.group) == 1 else rows.unflatten(-1, (len(plan.group), -1)).flip(1).flatten(1)

    monkeypatch.setattr("shiftruntime.layers.attention.heads_to_rows", swapped)
    sequences = random_sequences(LENGTHS, random.Random(0))
    expected = reference(save_llama(tmp_path), sequences)
    run = run_steps(LoadedModel.load(tmp_path, 4), one_step_each(sequences, Gear(2, 2)), sequences)
    assert largest_difference(run.logits, expected) > 100 * MAX_DIFFERENCE
