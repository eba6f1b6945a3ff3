"""How many tokens the KV cache of a pod holds, from its GPUs' memory."""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.layout import Gear, allowed_gears

from shiftsim.errors import UserError
from shiftsim.hardware import Gpu, Software
from shiftsim.models import Model

BF16_BYTES = 2


@dataclass(frozen=True)
class Engine:
    """How one engine is set up. ``pinned``: the only gear that runs, else all that can shift with ``base``.

    ``copies``: a second copy of the weights for the tp gear, as in the published implementation; else gears share one,
    as ours do. ``kv_memory_percent``: the cache's share of what weights and the largest step leave of all memory, as a
    resource asks for it; without it the cache takes all that they leave of ``memory_fraction``.
    """

    base: Gear
    pinned: Gear | None = None
    copies: bool = False
    max_batched_tokens: int = 8192
    max_num_seqs: int = 1024
    memory_fraction: float = 0.90
    kv_memory_percent: int | None = None

    @property
    def gears(self) -> tuple[Gear, ...]:
        return (self.pinned,) if self.pinned else allowed_gears(self.base)


def kv_tokens(model: Model, gpu: Gpu, engine: Engine, software: Software) -> int:
    """What is left of a GPU's memory after weights, activations and overheads; raises UserError if nothing is."""
    percent = engine.kv_memory_percent
    budget = gpu.memory_bytes * (engine.memory_fraction if percent is None else 1.0)
    taken = weight_bytes(model, engine) + activation_bytes(model, engine) + software.overhead_bytes
    heads = max(1.0, model.kv_heads / engine.base.ranks)
    token_bytes = 2 * heads * model.head_dim * model.kv_bytes * model.layers
    tokens = int((budget - taken) * (1.0 if percent is None else percent / 100) / token_bytes)
    if tokens < 1:
        raise UserError(
            f"{model.name} leaves no room for its cache: {taken / 1e9:.0f} GB of weights, activations and overheads "
            f"per GPU, {budget / 1e9:.0f} GB of memory to use; take more GPUs, a tensor gear or fewer tokens per step"
        )
    return tokens


def weight_bytes(model: Model, engine: Engine) -> float:
    """Of one GPU."""
    base = _weight_bytes(model, engine.base, copies=engine.copies)
    second = engine.copies and engine.pinned is None and engine.base.sequence > 1
    return base + (_weight_bytes(model, Gear(1, engine.base.ranks), copies=True) if second else 0.0)


def _weight_bytes(model: Model, gear: Gear, *, copies: bool) -> float:
    # A kv head is projected by every tensor rank whose queries read it.
    copied = model.hidden * model.head_dim * 2 * (max(model.kv_heads, gear.tensor) - model.kv_heads)
    attention = (model.attention_weights + copied) * model.weight_bytes / gear.tensor
    ffn = model.ffn_weights * model.weight_bytes / (gear.ranks if model.experts else gear.tensor)
    embedding = model.embedding_weights * BF16_BYTES / gear.tensor
    head = model.embedding_weights * BF16_BYTES / (gear.tensor if copies else gear.ranks)
    return model.layers * (attention + ffn) + embedding + head


def activation_bytes(model: Model, engine: Engine) -> float:
    """The most that lives at once in the largest step of one GPU.

    In the FFN: the residual and its normed row, both halves of the gate, their product, and that in the weights' width.
    """
    gear = engine.pinned or engine.base
    rows = -(-engine.max_batched_tokens // gear.sequence)
    ffn = model.ffn * max(1, model.experts_per_token) / gear.tensor
    return rows * (2 * BF16_BYTES * model.hidden + (3 * BF16_BYTES + model.weight_bytes) * ffn)
