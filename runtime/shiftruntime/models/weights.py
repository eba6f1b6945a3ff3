"""Weights once per host: one arena that every rank maps, and per gear nothing but views of it.

Chunk (r div S') of T' lies inside chunk (r div S) of T, so rows for column-parallel and a strided K slice for
row-parallel weights are all that a gear needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap

import torch
from shiftcore.experts import ExpertLayout
from shiftcore.layout import Gear, shard
from torch import Tensor

from shiftruntime.config import Experts, ModelConfig
from shiftruntime.kernels.ops import ExpertWeights
from shiftruntime.layers.attention import AttentionWeights
from shiftruntime.layers.exchange import HeadPlan
from shiftruntime.layers.mlp import MlpWeights
from shiftruntime.layers.moe import MoeWeights
from shiftruntime.models.shapes import tensor_shapes
from shiftruntime.models.source import ModelSource

_ALIGNMENT_BYTES = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Slot:
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ArenaLayout:
    """Where each canonical tensor lies; equal on every rank that plans with the same arguments."""

    config: ModelConfig
    slots: dict[str, Slot]
    total_bytes: int


@dataclass(frozen=True)
class LayerWeights:
    """Views of one rank in one gear."""

    attention: AttentionWeights
    mlp: MlpWeights | MoeWeights
    attn_norm: Tensor  # [hidden]
    mlp_norm: Tensor
    post_attn_norm: Tensor | None
    post_mlp_norm: Tensor | None


def plan_arena(config: ModelConfig, dtype: torch.dtype, ranks: int) -> ArenaLayout:
    """Offsets of all tensors; vocabulary rows padded to a multiple of ``ranks``, norms in float32 at least."""
    slots: dict[str, Slot] = {}
    offset = 0
    for name, shape in tensor_shapes(config).items():
        if name in ("embed", "lm_head"):
            shape = (config.padded_vocab(ranks), *shape[1:])
        wide = torch.promote_types(dtype, torch.float32) if name.endswith("norm") else dtype
        slots[name] = Slot(offset, shape, wide)
        offset += -(-slots[name].num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return ArenaLayout(config, slots, offset)


def view(layout: ArenaLayout, arena: memoryview | bytearray | mmap) -> dict[str, Tensor]:
    """Tensors over a writable buffer, for example an mmap of a memfd; nothing is copied."""
    assert len(arena) >= layout.total_bytes, f"arena of {len(arena)} bytes, the weights need {layout.total_bytes}"
    return {
        name: torch.frombuffer(arena, dtype=slot.dtype, count=math.prod(slot.shape), offset=slot.offset).view(
            slot.shape
        )
        for name, slot in layout.slots.items()
    }


def fill(
    source: ModelSource, layout: ArenaLayout, arena: memoryview | bytearray | mmap, progress: Progress | None = None
) -> None:
    """Copy the model into the arena (zeroed by its maker); raises StartupError(ModelDamaged).

    ``progress`` gets (bytes done, bytes in total), counted in the arena's element types.
    """
    tensors = view(layout, arena)
    total = sum(
        math.prod(shape) * layout.slots[name].dtype.itemsize for name, shape in tensor_shapes(layout.config).items()
    )
    done = 0
    for piece in source.pieces():
        target = tensors[piece.name][piece.first_row : piece.first_row + piece.rows.shape[0]]
        target.copy_(piece.rows)
        if piece.name.endswith("norm") and layout.config.norm_offset:
            target += layout.config.norm_offset
        done += target.nbytes
        if progress is not None:
            progress(done, total)
    assert done == total, f"{source.path}: {done} of {total} bytes came from the model's files"


def lm_head_shard(weights: dict[str, Tensor], ranks: int, rank: int) -> Tensor:
    """[padded vocabulary / P, hidden], the same in every gear."""
    head = weights.get("lm_head", weights["embed"])
    rows = shard(head.shape[0], ranks, rank, "padded vocabulary")
    return head[rows.start : rows.stop]


def layer_views(
    weights: dict[str, Tensor], config: ModelConfig, gear: Gear, rank: int, heads: HeadPlan
) -> tuple[LayerWeights, ...]:
    """All layers of one rank in one gear, as views."""
    d = config.head_dim
    query = slice(heads.query.start * d, heads.query.stop * d)
    kv = slice(heads.kv.start * d, heads.kv.stop * d)

    def layer(i: int) -> LayerWeights:
        own = {name.removeprefix(f"layers.{i}."): t for name, t in weights.items() if name.startswith(f"layers.{i}.")}

        attention = AttentionWeights(
            own["q"][query], own["k"][kv], own["v"][kv], own["o"][:, query],
            _part(own, "q_bias", query), _part(own, "k_bias", kv), _part(own, "v_bias", kv), own.get("o_bias"),
            own.get("q_norm"), own.get("k_norm"),
        )  # fmt: skip
        sparse = config.experts if config.is_sparse(i) else None
        mlp = _mlp_views(own, config, gear, rank) if sparse is None else _moe_views(own, sparse, gear.ranks, rank)
        return LayerWeights(
            attention, mlp, own["attn_norm"], own["mlp_norm"], own.get("post_attn_norm"), own.get("post_mlp_norm")
        )

    return tuple(layer(i) for i in range(config.num_layers))


def _part(own: dict[str, Tensor], name: str, part: slice) -> Tensor | None:
    return own[name][part] if name in own else None


def _mlp_views(own: dict[str, Tensor], config: ModelConfig, gear: Gear, rank: int) -> MlpWeights:
    ffn = shard(config.intermediate_size, gear.tensor, gear.tensor_index(rank), "intermediate_size (FFN)")
    part = slice(ffn.start, ffn.stop)
    return MlpWeights(
        own["gate"][part], own["up"][part], own["down"][:, part],
        _part(own, "gate_bias", part), _part(own, "up_bias", part), own.get("down_bias"),
    )  # fmt: skip


def _moe_views(own: dict[str, Tensor], experts: Experts, ranks: int, rank: int) -> MoeWeights:
    """The rank's experts; no view depends on the gear."""
    owned = ExpertLayout(experts.count, ranks).owned(rank)
    gate, up, down = (own[f"expert_{name}"][owned.start : owned.stop] for name in ("gate", "up", "down"))
    return MoeWeights(own["router"], ExpertWeights(owned.start, gate, up, down))
