"""GGUF files of every family say what the same model says as safetensors; what they hold beyond that is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from helpers.tiny_families import save_gemma3, save_llama, save_qwen2, save_qwen3
from helpers.tiny_gguf import write_gguf
from helpers.tiny_models import LoadedModel, random_sequences, random_steps, run_steps
from shiftcore.layout import Gear, allowed_gears
from shiftruntime.errors import StartupError
from shiftruntime.models import gguf_source
from shiftruntime.models.gemma3 import read_gguf_config
from shiftruntime.models.source import open_model

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 2.0}
MODELS: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
    "llama": (save_llama, "llama", {}),
    "llama-biased-tied": (save_llama, "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3-rope": (save_llama, "llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear": (save_llama, "llama", {"rope_parameters": LINEAR_ROPE}),
    "qwen2": (save_qwen2, "qwen2", {}),
    "qwen2-yarn": (save_qwen2, "qwen2", {"rope_parameters": YARN_ROPE}),
    "qwen3": (save_qwen3, "qwen3", {"tie_word_embeddings": True}),
    "gemma3": (save_gemma3, "gemma3", {"query_pre_attn_scalar": 12, "sliding_window_pattern": 6}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_says_what_its_safetensors_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_source, "_PIECE_ELEMENTS", 48 * 30)  # more than two heads, not a multiple of one
    saver, architecture, overrides = MODELS[name]
    saver(tmp_path, **overrides)

    def sliding(writer: gguf.GGUFWriter, _: dict[str, torch.Tensor]) -> None:
        if architecture == "gemma3":
            writer.add_uint32("gemma3.attention.sliding_window", 8)

    write_gguf(tmp_path, tmp_path / "m.gguf", architecture, edit=sliding)
    rng = random.Random(3)
    sequences = random_sequences((29, 5, 34), rng)
    steps = random_steps(sequences, allowed_gears(Gear(4, 1)), rng)
    mine, theirs = (
        run_steps(LoadedModel.load(path, 4), steps, sequences).logits for path in (tmp_path / "m.gguf", tmp_path)
    )
    for one, other in zip(mine, theirs, strict=True):
        assert (one.log_softmax(-1) - other.log_softmax(-1)).abs().max() <= 2e-5


def test_quantised_rows_of_heads_are_put_in_order(tmp_path: Path) -> None:
    """Q8_0 loses digits, not places: every weight is within a step of 1/127 of the largest of its block."""
    save_llama(tmp_path, hidden_size=64, head_dim=16, intermediate_size=128)
    write_gguf(tmp_path, tmp_path / "m.gguf", "llama", kind=gguf.GGMLQuantizationType.Q8_0)
    mine, theirs = (LoadedModel.load(path, 2).weights for path in (tmp_path / "m.gguf", tmp_path))
    for name, weight in theirs.items():
        assert (mine[name] - weight).abs().max() <= weight.abs().max() / 127, name


def test_the_order_of_rows_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "llama")
    monkeypatch.setattr(gguf_source, "_unpaired", lambda rows, head_dim: rows)
    mine, theirs = (LoadedModel.load(path, 1).weights for path in (tmp_path / "m.gguf", tmp_path))
    assert not torch.equal(mine["layers.0.q"], theirs["layers.0.q"])
    assert torch.equal(mine["layers.0.v"], theirs["layers.0.v"])


def add(name: str, shape: tuple[int, ...] = (48,)) -> Callable[[gguf.GGUFWriter, dict[str, torch.Tensor]], object]:
    return lambda writer, tensors: tensors.update({name: torch.ones(shape)})


def key(name: str, value: object) -> Callable[[gguf.GGUFWriter, dict[str, torch.Tensor]], object]:
    def edit(writer: gguf.GGUFWriter, tensors: dict[str, torch.Tensor]) -> None:
        kinds: dict[type, Callable[[str, Any], None]] = {
            int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array,
        }  # fmt: skip
        kinds[type(value)](f"llama.{name}", value)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (add("blk.0.attn_q.scale"), "blk.0.attn_q.scale has no meaning"),
        (add("blk.2.attn_norm.weight"), "blk.2.attn_norm.weight has no meaning"),
        (add("rope_factors_long.weight"), "rope_factors_long.weight has no meaning"),
        (add("rope_freqs.weight", (5,)), r"rope_freqs.weight must hold 6 positive numbers"),
        (key("expert_count", 8), "8 experts"),
        (key("rope.dimension_count", 6), "rope.dimension_count 6 differs from the head size 12"),
        (key("attention.value_length", 8), "attention.value_length 8"),
        (key("rope.scaling.type", "longrope"), "'longrope' is not supported"),
        (key("rope.scaling.attn_factor", 1.5), "rope.scaling.attn_factor 1.5"),
    ],
)
def test_what_a_gguf_cannot_mean_is_refused(edit: Any, words: str, tmp_path: Path) -> None:
    save_llama(tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "llama", edit=edit)
    with pytest.raises(StartupError, match=words):
        open_model(tmp_path / "m.gguf")


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """The second used to hide the first."""
    save_llama(tmp_path)
    file = tmp_path / "m.gguf"
    write_gguf(tmp_path, file, "llama")
    file.write_bytes(file.read_bytes().replace(b"blk.1.attn_k.weight", b"blk.1.attn_q.weight"))
    with pytest.raises(StartupError, match=r"blk\.1\.attn_q\.weight is there twice"):
        open_model(file)


def test_the_largest_gemma_3_scales_its_scores_otherwise() -> None:
    """Its header is silent: 5376 hidden values over 32 heads, not the head size of 128."""
    raw = {
        "gemma3.embedding_length": 5376, "gemma3.block_count": 62, "gemma3.attention.key_length": 128,
        "gemma3.attention.head_count": 32, "gemma3.attention.head_count_kv": 16, "gemma3.feed_forward_length": 21504,
        "gemma3.context_length": 131072, "gemma3.attention.sliding_window": 1024,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6, "tokenizer.ggml.tokens": ("t",),
    }  # fmt: skip
    assert read_gguf_config(raw).scale == pytest.approx(168**-0.5)
    assert read_gguf_config(raw | {"gemma3.block_count": 48}).scale == pytest.approx(128**-0.5)
