"""Shapes of models, read from the config.json that Hugging Face gives them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from shiftsim.errors import UserError

_BYTES = {"fp8": 1, "bf16": 2}
# With full attention over all layers, and one cache of keys and values.
_KINDS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
_FP8_METHODS, _BITS = ("fp8", "fbgemm_fp8"), 8
_SUFFIXES = tuple(f"-{name}" for name in _BYTES)


@dataclass(frozen=True)
class Model:
    """What the cost of a step depends on. ``experts`` is 0 for a dense model; ``ffn`` is then that of every token."""

    name: str
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # of one expert, where there are experts
    vocab: int
    max_model_len: int
    experts: int = 0
    experts_per_token: int = 0
    weight_bytes: int = (
        1  # of one weight of a linear layer; embedding and head stay in bf16, as published FP8 models do
    )
    kv_bytes: int = 2  # of one number in the cache

    @property
    def attention_weights(self) -> int:
        """Of one layer."""
        return self.hidden * self.head_dim * (2 * self.query_heads + 2 * self.kv_heads)

    @property
    def ffn_weights(self) -> int:
        """Of one layer, all experts."""
        return 3 * self.hidden * self.ffn * max(1, self.experts)

    @property
    def embedding_weights(self) -> int:
        """Of the table of tokens, and as many of the head."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Without norms and routers."""
        return self.layers * (self.attention_weights + self.ffn_weights) + 2 * self.embedding_weights


def names() -> tuple[str, ...]:
    """Models that come with the simulator."""
    folder = resources.files("shiftsim").joinpath("data/models")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir()))


def load(name: str, *, kv: str = "auto") -> Model:
    """``llama-3.3-70b-fp8``, ``qwen3-32b-bf16`` or the path of a config.json. Raises UserError.

    Weights are FP8 when the name ends so or the config has a quantization_config of that kind, else bf16, whatever the
    dtype of the checkpoint. ``kv``: the cache's numbers, ``fp8`` or ``bf16``; ``auto`` is bf16.
    """
    bare = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
    if bare in names():
        text = resources.files("shiftsim").joinpath(f"data/models/{bare}.json").read_text()
    elif Path(name).is_file():
        text = _text(Path(name))
    else:
        raise UserError(
            f"model {name!r} is unknown; give the path of a config.json or one of {', '.join(names())}, with -fp8 "
            "behind it for FP8 weights"
        )
    if kv not in ("auto", *_BYTES):
        raise UserError(f"a KV cache of {kv!r} is unknown; use auto, {' or '.join(_BYTES)}")
    weights = "fp8" if name.endswith("-fp8") else "bf16"
    try:
        return _from_config(name, json.loads(text), weights, "bf16" if kv == "auto" else kv)
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{name} is no config.json of a decoder that is known here: {error!r}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a config.json: {error}") from error


def _from_config(name: str, config: dict[str, Any], weights: str, kv: str) -> Model:
    kind = config.get("model_type", "llama")
    if kind not in _KINDS:
        raise UserError(
            f"{name} is of type {kind}, whose attention or experts cost otherwise; known: {', '.join(_KINDS)}"
        )
    heads, experts = config["num_attention_heads"], config.get("num_experts") or config.get("num_local_experts") or 0
    return Model(
        name=name,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        query_heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ffn=config["moe_intermediate_size"]
        if experts and "moe_intermediate_size" in config
        else config["intermediate_size"],
        vocab=config["vocab_size"],
        max_model_len=config["max_position_embeddings"],
        experts=experts,
        experts_per_token=config.get("num_experts_per_tok", 0) if experts else 0,
        weight_bytes=_BYTES["fp8" if _quantised(name, config) else weights],
        kv_bytes=_BYTES[kv],
    )


def _quantised(name: str, config: dict[str, Any]) -> bool:
    """Whether linear layers multiply numbers of 8 bits: the only quantisation whose cost is known here."""
    asked = config.get("quantization_config") or config.get("compression_config")
    if not asked:
        return False
    method = asked.get("quant_method")
    if method in _FP8_METHODS:
        return True
    if method != "compressed-tensors":
        raise _other_weights(name, f"quant_method {method!r}")
    for group, scheme in (asked.get("config_groups") or {"config_groups": {}}).items():
        for what in ("weights", "input_activations"):
            bits = (scheme.get(what) or {}).get("num_bits")
            if bits != _BITS:
                raise _other_weights(name, f"{what} of {bits or 'unknown'} bits in {group}")
    return True


def _other_weights(name: str, what: str) -> UserError:
    return UserError(
        f"{name} is quantised with {what}; what a step costs is known for weights and activations of {_BITS} bits "
        f"({', '.join(_FP8_METHODS)}, compressed-tensors) and for bf16. Take the config.json of an FP8 checkpoint, or "
        "remove quantization_config to plan with bf16"
    )
