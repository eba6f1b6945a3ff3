"""Tiny random models of every dense family, saved as Hugging Face does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_SHAPE: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 12, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_GEMMA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 8, "pad_token_id": 2}
_GEMMA3 = _SHAPE | _GEMMA | {"num_hidden_layers": 6, "sliding_window_pattern": 3, "query_pre_attn_scalar": 20}


def save_llama(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Llama with grouped queries; returns the Hugging Face model."""
    config = transformers.LlamaConfig(**(_SHAPE | overrides), attn_implementation="eager")
    return save_random(transformers.LlamaForCausalLM, config, folder, seed)


def save_mistral(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Mistral whose layers all slide, with a window shorter than the tests' sequences."""
    values = _SHAPE | {"num_key_value_heads": 2, "sliding_window": 9}
    config = transformers.MistralConfig(**(values | overrides), attn_implementation="eager")
    return save_random(transformers.MistralForCausalLM, config, folder, seed)


def save_qwen2(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Qwen 2; its heads are hidden size / heads wide."""
    values = {key: value for key, value in _SHAPE.items() if key != "head_dim"}
    config = transformers.Qwen2Config(**(values | overrides), attn_implementation="eager")
    return save_random(transformers.Qwen2ForCausalLM, config, folder, seed)


def save_qwen3(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Qwen 3."""
    config = transformers.Qwen3Config(**(_SHAPE | overrides), attn_implementation="eager")
    return save_random(transformers.Qwen3ForCausalLM, config, folder, seed)


def save_gemma2(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Gemma 2 with soft caps low enough to bend its scores and logits; every second layer sees all tokens."""
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 20}
    values = _SHAPE | _GEMMA | {"num_hidden_layers": 4} | caps
    config = transformers.Gemma2Config(**(values | overrides), attn_implementation="eager")
    return save_random(transformers.Gemma2ForCausalLM, config, folder, seed)


def save_gemma3(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Gemma 3 with one kv head, a window shorter than the tests' sequences and two full layers among six."""
    config = transformers.Gemma3TextConfig(**(_GEMMA3 | overrides), attn_implementation="eager")
    return save_random(transformers.Gemma3ForCausalLM, config, folder, seed)


def save_gemma3_wrapper(folder: Path, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """The same inside a model that reads images too, as the larger ones are published."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=_GEMMA3 | overrides, vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, attn_implementation="eager", bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return save_random(transformers.Gemma3ForConditionalGeneration, config, folder, seed)


def save_random(
    model_class: type[transformers.PreTrainedModel], config: transformers.PreTrainedConfig, folder: Path, seed: int
) -> transformers.PreTrainedModel:
    """A model of this configuration with every weight drawn anew, saved with a tokenizer."""
    torch.manual_seed(seed)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if name.endswith("norm.weight") else 1.5 * parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn_like(parameter) * scale)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of at most 131 tokens: two special ones and single characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *[c for c in alphabet if c.isascii() or c == "Ġ"]])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
