"""Bit-stable arithmetic: a result depends on its own inputs only, never on the gear, the other rows or the columns.

Nothing here is left to a library that may choose its own order: products and sums are elementwise IEEE operations in
fixed pairwise trees; sums over a sharded dimension go over a fixed number of leaves that the ranks exchange; and
transcendental functions run on full blocks, because vector code and its scalar tail round differently. Slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftruntime.config import Activation, ModelConfig
from shiftruntime.errors import invalid_layout
from shiftruntime.kernels.ops import AttentionPlan, Chunk, ExpertWeights, Reducer, token_slots, write_slots
from shiftruntime.kernels.routing import assigned, largest

LEAF_COUNTS = (24, 16)  # leaves of a sharded K: the first count that divides it
_FUNCTION_BLOCK = 1024  # elements; a multiple of every vector width, below torch's threshold for threads
_KV_BLOCK = 16  # positions summed as one tree, by absolute position
_PRODUCT_ELEMENTS = 1 << 21  # bound on the products held at once


@dataclass(frozen=True)
class ExactPlan:
    write_slots: Tensor
    chunks: tuple[tuple[Chunk, Tensor], ...]  # with the slots of all its positions, padded to full KV blocks


class ExactOps:
    """float32 or float64."""

    name = "exact"

    def check_model(self, config: ModelConfig, ranks: int) -> None:
        sharded = {"attention output": config.num_query_heads * config.head_dim}
        if config.has_dense_layers:  # an expert lies whole on one rank, so that its K is not cut
            sharded["FFN"] = config.intermediate_size
        for what, K in sharded.items():
            count = leaf_count(K)
            if count is None or count % ranks:
                counts = " or ".join(map(str, LEAF_COUNTS))
                raise invalid_layout(
                    f"exact mode cuts the {what} input K={K} into {counts} equal leaves that divide over "
                    f"{ranks} ranks; this K and this number of ranks do not allow it"
                )

    def linear_columns(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        out = _leaf_products(x, w, 1)[0]
        return out if bias is None else out + bias

    def linear_rows(self, x: Tensor, w: Tensor, reducer: Reducer, group: tuple[int, ...]) -> Tensor:
        members = len(group)
        count = leaf_count(w.shape[1] * members)
        assert count is not None, "check_model refuses such a K"
        leaves = _leaf_products(x, w, count // members)  # [leaves of rank, rows, N]
        if members > 1:
            leaves = reducer.all_gather(leaves, group).flatten(0, 1)
        return _sum_in_order(leaves)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = _tree_sum(x * x)[..., None] / x.shape[-1]
        return x * (1.0 / torch.sqrt(mean_square + eps)) * weight

    def rope_tables(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        angles = (positions.to(inv_freq.dtype)[:, None] * inv_freq)[:, None, :]
        return _in_blocks(torch.cos, angles), _in_blocks(torch.sin, angles)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        low, high = x.chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        if activation == "silu":
            return gate / (1.0 + self.exp(-gate)) * up
        inner = (gate + 0.044715 * (gate * gate * gate)) * math.sqrt(2 / math.pi)
        return 0.5 * gate * (1.0 + _in_blocks(torch.tanh, inner)) * up

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return _in_blocks(torch.tanh, x / cap) * cap

    def route(self, logits: Tensor, per_token: int, normalised: bool) -> tuple[Tensor, Tensor]:
        grown = self.exp(logits - logits.amax(-1, keepdim=True))
        ids, weights = largest(grown / _tree_sum(grown)[:, None], per_token)
        return ids, weights / _tree_sum(weights)[:, None] if normalised else weights

    def run_experts(self, x: Tensor, ids: Tensor, weights: Tensor, w: ExpertWeights, activation: Activation) -> Tensor:
        """[rows, per token, hidden]: apart, and zero where the expert is not of ``w``: adding these rounds nothing."""
        out = x.new_zeros((*ids.shape, x.shape[1]))
        for expert, rows, places in assigned(ids, w.first, len(w.gate)):
            some = x[rows]
            gate, up = self.linear_columns(some, w.gate[expert]), self.linear_columns(some, w.up[expert])
            fed = self.linear_columns(self.gated(gate, up, activation), w.down[expert])
            out[rows, places] = fed * weights[rows, places, None]
        return out

    def sum_experts(self, parts: Tensor) -> Tensor:
        return _sum_in_order(parts.movedim(1, 0))

    def plan_attention(
        self, chunks: tuple[Chunk, ...], block_size: int, windows: tuple[int | None, ...], dtype: torch.dtype
    ) -> ExactPlan:
        def padded(chunk: Chunk) -> Tensor:
            slots = token_slots(chunk, block_size, is_masked=True)
            return torch.nn.functional.pad(slots, (0, -len(slots) % _KV_BLOCK))

        return ExactPlan(write_slots(chunks, block_size), tuple((chunk, padded(chunk)) for chunk in chunks))

    def attention(
        self, q: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, window: int | None, scale: float,
        soft_cap: float | None = None,
    ) -> Tensor:  # fmt: skip
        assert isinstance(plan, ExactPlan)
        out = torch.empty_like(q)
        for chunk, slots in plan.chunks:
            k, v = keys[slots].to(q.dtype), values[slots].to(q.dtype)  # [positions, kv heads, head_dim]
            step = max(1, _PRODUCT_ELEMENTS // (k.shape[0] * q.shape[1] * q.shape[2]))
            for first in range(0, chunk.num_rows, step):
                stop = min(first + step, chunk.num_rows)
                seen = _seen(chunk.context_len + first, chunk.context_len + stop, k.shape[0], window)
                rows = slice(chunk.first_row + first, chunk.first_row + stop)
                out[rows] = self._attend(q[rows], k, v, seen, scale, soft_cap)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, soft_cap: float | None) -> Tensor:
        """q [rows, query heads, head_dim], k, v [positions, kv heads, head_dim], seen [rows, positions]."""
        rows, heads, dim = q.shape
        kv_heads = k.shape[1]
        grouped = q.reshape(rows, 1, kv_heads, heads // kv_heads, dim)
        scores = _tree_sum(grouped * k[None, :, :, None]) * scale  # [rows, positions, kv, group]
        scores = scores if soft_cap is None else self.soft_cap(scores, soft_cap)
        hidden = ~seen[:, :, None, None]
        scores = scores.masked_fill(hidden, float("-inf"))
        weights = self.exp(scores - scores.amax(1, keepdim=True)).masked_fill(hidden, 0.0)
        blocks = weights.view(rows, -1, _KV_BLOCK, kv_heads, heads // kv_heads)
        norm = _sum_in_order(_tree_sum(blocks.movedim(2, -1)).movedim(1, 0))  # [rows, kv, group]
        value_blocks = v.view(-1, _KV_BLOCK, kv_heads, dim)
        partial = _tree_sum((blocks[..., None] * value_blocks[None, :, :, :, None]).movedim(2, -1))
        total = _sum_in_order(partial.movedim(1, 0))  # [rows, kv, group, head_dim]
        return (total / norm[..., None]).reshape(rows, heads, dim)

    def exp(self, x: Tensor) -> Tensor:
        return _in_blocks(torch.exp, x)

    def log(self, x: Tensor) -> Tensor:
        return _in_blocks(torch.log, x)


def leaf_count(K: int) -> int | None:
    """Leaves of a K that is sharded over the tensor group; None: no count divides it."""
    return next((count for count in LEAF_COUNTS if K % count == 0), None)


def _leaf_products(x: Tensor, w: Tensor, leaves: int) -> Tensor:
    """x [rows, K] · w [N, K] summed within each of ``leaves`` equal parts of K → [leaves, rows, N]."""
    rows, K = x.shape
    out = x.new_empty((leaves, rows, w.shape[0]))
    step_rows = max(1, min(rows, _PRODUCT_ELEMENTS // (64 * K)))
    step_columns = max(1, _PRODUCT_ELEMENTS // (step_rows * K))
    for row in range(0, rows, step_rows):
        some = x[row : row + step_rows, None, :]
        for column in range(0, w.shape[0], step_columns):
            products = some * w[None, column : column + step_columns]
            sums = _tree_sum(products.view(*products.shape[:-1], leaves, K // leaves))
            out[:, row : row + step_rows, column : column + step_columns] = sums.movedim(-1, 0)
    return out


def _tree_sum(x: Tensor) -> Tensor:
    """Over the last dimension, in a tree whose shape depends on its size only."""
    while (size := x.shape[-1]) > 1:
        half = size // 2
        pairs = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat((pairs, x[..., -1:]), dim=-1) if size % 2 else pairs
    return x[..., 0]


def _sum_in_order(x: Tensor) -> Tensor:
    """Over the first dimension, one after the other, from +0."""
    total = torch.zeros_like(x[0])
    for part in x:
        total = total + part
    return total


def _in_blocks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Elementwise ``function`` on full blocks, so that every element takes the same code path."""
    flat = x.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % _FUNCTION_BLOCK))
    blocks = [function(block) for block in padded.view(-1, _FUNCTION_BLOCK)]
    return torch.cat(blocks)[: len(flat)].view(x.shape) if blocks else x


def _seen(first: int, stop: int, positions: int, window: int | None) -> Tensor:
    """[rows, positions] of queries at positions [first, stop)."""
    distance = torch.arange(first, stop)[:, None] - torch.arange(positions)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
