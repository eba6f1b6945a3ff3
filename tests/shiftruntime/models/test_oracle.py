"""Our decoder in every gear against Hugging Face transformers, eager, float32, on tiny random models."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny_families import (
    save_gemma2,
    save_gemma3,
    save_gemma3_wrapper,
    save_llama,
    save_mistral,
    save_qwen2,
    save_qwen3,
)
from helpers.tiny_models import LoadedModel, one_step_each, random_sequences, random_steps, run_steps
from shiftcore.layout import Gear, allowed_gears

pytestmark = pytest.mark.oracle

LENGTHS = (29, 5, 34)
MAX_DIFFERENCE = 1e-4
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
YARN_ROPE_IN_FULL = YARN_ROPE | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.3}
YARN_ROPE_WITH_MSCALES = YARN_ROPE | {"mscale": 1.5, "mscale_all_dim": 0.5}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 2.0}
ROPE_BY_LAYER_TYPE = {"full_attention": YARN_ROPE, "sliding_attention": LINEAR_ROPE}
SLIDING = {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 3}
BIASED = {"attention_bias": True, "mlp_bias": True}
Saver = Callable[..., transformers.PreTrainedModel]
MODELS: dict[str, tuple[Saver, dict[str, Any]]] = {
    "llama": (save_llama, {}),
    "llama2": (save_llama, {"num_key_value_heads": 8, "head_dim": None}),
    "llama-tied-biased": (save_llama, {"tie_word_embeddings": True} | BIASED),
    "llama-one-kv-head": (save_llama, {"num_key_value_heads": 1}),
    "llama3-rope": (save_llama, {"rope_parameters": LLAMA3_ROPE}),
    "linear-rope": (save_llama, {"rope_parameters": LINEAR_ROPE}),
    "yarn-rope-in-full": (save_llama, {"rope_parameters": YARN_ROPE_IN_FULL}),
    "yarn-rope-with-mscales": (save_llama, {"rope_parameters": YARN_ROPE_WITH_MSCALES}),
    "mistral-sliding": (save_mistral, {}),
    "mistral": (save_mistral, {"sliding_window": None, "head_dim": None}),
    "qwen2": (save_qwen2, {}),
    "qwen2-sliding-yarn": (save_qwen2, SLIDING | {"max_window_layers": 1, "rope_parameters": YARN_ROPE}),
    "qwen2-tied": (save_qwen2, {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "qwen3": (save_qwen3, {}),
    "qwen3-sliding-biased": (save_qwen3, SLIDING | {"max_window_layers": 2, "attention_bias": True}),
    "gemma2": (save_gemma2, {}),
    "gemma2-logit-cap-only": (
        save_gemma2,
        {"attn_logit_softcapping": None, "num_key_value_heads": 2, "sliding_window": 40},
    ),
    "gemma3": (save_gemma3, {}),
    "gemma3-with-images": (save_gemma3_wrapper, {}),
    "gemma3-two-kv-heads": (save_gemma3, {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 6}),
    "gemma3-rope-by-layer-type": (save_gemma3, {"rope_parameters": ROPE_BY_LAYER_TYPE}),
}
CASES = [(name, gear) for name in MODELS for ranks in (1, 2, 4) for gear in allowed_gears(Gear(ranks, 1))]
KV_HEADS_OF_MANY_RANKS = {3: 3, 6: 2, 8: 4}
MANY_RANKS = [gear for ranks in KV_HEADS_OF_MANY_RANKS for gear in allowed_gears(Gear(ranks, 1))]


@dataclass
class Reference:
    """A saved model with what transformers says about fixed sequences, and how far we were from it so far."""

    folder: Path
    sequences: list[list[int]]
    expected: list[torch.Tensor]
    largest: float = 0.0

    def check(self, logits: list[torch.Tensor]) -> None:
        difference = largest_difference(logits, self.expected)
        self.largest = max(self.largest, difference)
        assert difference <= MAX_DIFFERENCE

    def check_gear(self, gear: Gear) -> None:
        """Whole sequences, and random chunks of several."""
        model = LoadedModel.load(self.folder, gear.ranks)
        rng = random.Random(gear.tensor * 10 + gear.sequence)
        self.check(run_steps(model, one_step_each(self.sequences, gear), self.sequences).logits)
        self.check(run_steps(model, random_steps(self.sequences, (gear,), rng), self.sequences).logits)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Reference]]:
    """Each model is saved and read by transformers once; at the end the largest differences are printed (-s)."""
    made: dict[str, Reference] = {}

    def get(name: str, **changes: Any) -> Reference:
        key = name + "".join(f" {k}={v}" for k, v in changes.items())
        if key not in made:
            saver, overrides = MODELS[name]
            folder = tmp_path_factory.mktemp("model")
            model, sequences = saver(folder, **(overrides | changes)), random_sequences(LENGTHS, random.Random(1))
            made[key] = Reference(folder, sequences, reference(model, sequences))
        return made[key]

    yield get
    for key, done in made.items():
        print(f"max |Δlogprob| {key}: {done.largest:.1e}")


def reference(model: transformers.PreTrainedModel, sequences: list[list[int]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(torch.tensor([s])).logits[0].log_softmax(-1) for s in sequences]


def largest_difference(logits: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(logits, expected, strict=True)
    return max(float((mine.log_softmax(-1) - theirs).abs().max()) for mine, theirs in pairs)


@pytest.mark.parametrize(("name", "gear"), CASES, ids=str)
def test_logprobs_agree_with_transformers(name: str, gear: Gear, references: Callable[..., Reference]) -> None:
    references(name).check_gear(gear)


@pytest.mark.parametrize("gear", MANY_RANKS, ids=str)
def test_logprobs_agree_on_many_ranks(gear: Gear, references: Callable[..., Reference]) -> None:
    shape = {"num_attention_heads": 24, "head_dim": 4, "num_key_value_heads": KV_HEADS_OF_MANY_RANKS[gear.ranks]}
    references("qwen3", **shape).check_gear(gear)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3"])
def test_logprobs_agree_while_shifting(name: str, references: Callable[..., Reference]) -> None:
    model = references(name)
    steps = random_steps(model.sequences, allowed_gears(Gear(4, 1)), random.Random(9))
    model.check(run_steps(LoadedModel.load(model.folder, 4), steps, model.sequences).logits)


@pytest.mark.parametrize(
    ("name", "trait", "without"),
    [
        ("gemma2", "attention_soft_cap", None), ("gemma2", "logit_soft_cap", None), ("gemma3", "sliding_layers", ()),
        ("gemma3", "attention_scale", None), ("gemma3-rope-by-layer-type", "rope_scaling_local", None),
        ("yarn-rope-in-full", "rope_scaling", None), ("llama3-rope", "rope_scaling", None),
    ],
)  # fmt: skip
def test_each_trait_is_seen(name: str, trait: str, without: Any, references: Callable[..., Reference]) -> None:
    """The oracle would notice a trait that is left out."""
    model = references(name)
    loaded = LoadedModel.load(model.folder, 1)
    source = SimpleNamespace(config=dataclasses.replace(loaded.source.config, **{trait: without}))
    changed = dataclasses.replace(loaded, source=source)
    run = run_steps(changed, one_step_each(model.sequences, Gear(1, 1)), model.sequences)
    assert largest_difference(run.logits, model.expected) > 100 * MAX_DIFFERENCE


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
