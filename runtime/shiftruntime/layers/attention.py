"""Attention of one layer in any gear: project own rows, exchange, attend with own heads, exchange back, reduce."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shiftruntime.config import ModelConfig
from shiftruntime.kernels.ops import AttentionPlan, Ops
from shiftruntime.layers.exchange import HeadPlan, heads_to_rows, rows_to_heads
from shiftruntime.layers.moe import ExpertPlan
from shiftruntime.parallel.comm import Comm


@dataclass(frozen=True)
class AttentionWeights:
    """Views of one rank in one gear."""

    q: Tensor  # [projected query heads * head_dim, hidden]
    k: Tensor  # [projected kv heads * head_dim, hidden]
    v: Tensor
    o: Tensor  # [hidden, projected query heads * head_dim], a strided K slice
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    o_bias: Tensor | None
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None


@dataclass(frozen=True)
class StepState:
    """What all layers of one step share on one rank."""

    num_tokens: int  # of the step, without padding
    heads: HeadPlan
    tensor_group: tuple[int, ...]
    attention: tuple[AttentionPlan, ...]  # per layer; layers of one group of the cache share theirs
    rope_full: tuple[Tensor, Tensor]  # cos, sin [rows, 1, head_dim / 2] of this rank's rows
    rope_sliding: tuple[Tensor, Tensor]
    experts: ExpertPlan | None  # None: every layer is dense


def attend(
    x: Tensor, w: AttentionWeights, layer: int, state: StepState, cache: tuple[Tensor, Tensor],
    config: ModelConfig, ops: Ops, comm: Comm,
) -> Tensor:  # fmt: skip
    """x [rows, hidden] of this rank → [rows, hidden]; cache: keys, values [slots, kv heads of rank, head_dim]."""
    q, k, v = _project(x, w, layer, state, config, ops)
    q, k, v = rows_to_heads(q, k, v, state.heads, comm)
    n = state.num_tokens  # padding rows come last and get no slot
    keys, values = cache
    plan = state.attention[layer]
    keys.index_copy_(0, plan.write_slots, k[:n].to(keys.dtype))
    values.index_copy_(0, plan.write_slots, v[:n].to(values.dtype))
    out = torch.zeros_like(q)
    window = config.window(layer)
    out[:n] = ops.attention(q[:n], keys, values, plan, window, config.scale, config.attention_soft_cap)
    mixed = heads_to_rows(out, state.heads, comm)  # [rows, projected query heads * head_dim]
    reduced = ops.linear_rows(mixed, w.o, comm, state.tensor_group)
    return reduced if w.o_bias is None else reduced + w.o_bias


def _project(
    x: Tensor, w: AttentionWeights, layer: int, state: StepState, config: ModelConfig, ops: Ops
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [rows, projected heads, head_dim] with qk-norm and RoPE."""
    shape = (x.shape[0], -1, config.head_dim)
    q = ops.linear_columns(x, w.q, w.q_bias).view(shape)
    k = ops.linear_columns(x, w.k, w.k_bias).view(shape)
    v = ops.linear_columns(x, w.v, w.v_bias).view(shape)
    if w.q_norm is not None and w.k_norm is not None:
        q = ops.rms_norm(q, w.q_norm, config.rms_norm_eps)
        k = ops.rms_norm(k, w.k_norm, config.rms_norm_eps)
    cos, sin = state.rope_sliding if config.slides(layer) else state.rope_full
    return ops.rope(q, cos, sin), ops.rope(k, cos, sin), v
