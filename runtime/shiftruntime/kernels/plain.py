"""Fast torch arithmetic. Not bit-stable: results may differ in the last bits with the number of rows or columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from shiftruntime.config import Activation, ModelConfig
from shiftruntime.kernels.ops import AttentionPlan, Chunk, ExpertWeights, Reducer, token_slots, write_slots
from shiftruntime.kernels.routing import assigned, largest

_GATHERED_SLOTS = 1 << 14  # of decodes gathered at once, where one context is not longer: bounds what a step needs
_BENT_SCORES = 1 << 23  # of a soft cap held at once, if that is a row at least
_SHORT_CONTEXT = 64  # decodes up to here share one product; padding them costs less than another call


@dataclass(frozen=True)
class _Prefill:
    rows: slice
    slots: Tensor  # [context] int64
    mask: Tensor  # [rows, context], 0 or -inf


@dataclass(frozen=True)
class _Decodes:
    """Sequences with contexts of about one length."""

    rows: Tensor  # [sequences] int64
    slots: Tensor  # [sequences, context] int64, padded with slot 0
    mask: Tensor  # [sequences, 1, 1, context], 0 or -inf


@dataclass(frozen=True)
class PlainPlan:
    """Slots and masks per window of the model."""

    write_slots: Tensor
    prefills: dict[int | None, tuple[_Prefill, ...]]
    decodes: dict[int | None, tuple[_Decodes, ...]]


class PlainOps:
    """float32, bfloat16 or float64; norms and rope in float32 at least."""

    name = "plain"

    def check_model(self, config: ModelConfig, ranks: int) -> None:
        """Takes every model."""

    def linear_columns(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(x, w, bias)

    def linear_rows(self, x: Tensor, w: Tensor, reducer: Reducer, group: tuple[int, ...]) -> Tensor:
        partial = functional.linear(x, w)  # [rows, N]
        return partial if len(group) == 1 else reducer.all_reduce(partial, group)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(weight.dtype)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)

    def rope_tables(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        angles = (positions.to(inv_freq.dtype)[:, None] * inv_freq)[:, None, :]
        return angles.cos(), angles.sin()

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        low, high = x.to(cos.dtype).chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        return (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up

    def route(self, logits: Tensor, per_token: int, normalised: bool) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        ids, weights = largest(logits.softmax(-1, dtype=wide), per_token)
        return ids, weights / weights.sum(-1, keepdim=True) if normalised else weights

    def run_experts(self, x: Tensor, ids: Tensor, weights: Tensor, w: ExpertWeights, activation: Activation) -> Tensor:
        out = torch.zeros_like(x)
        for expert, rows, places in assigned(ids, w.first, len(w.gate)):
            some = x[rows]
            gate, up = functional.linear(some, w.gate[expert]), functional.linear(some, w.up[expert])
            fed = functional.linear(self.gated(gate, up, activation), w.down[expert])
            out.index_add_(0, rows, (fed * weights[rows, places, None]).to(x.dtype))
        return out

    def sum_experts(self, parts: Tensor) -> Tensor:
        return parts

    def plan_attention(
        self, chunks: tuple[Chunk, ...], block_size: int, windows: tuple[int | None, ...], dtype: torch.dtype
    ) -> PlainPlan:
        singles = tuple(chunk for chunk in chunks if chunk.num_rows == 1)
        longer = tuple(chunk for chunk in chunks if chunk.num_rows > 1)
        return PlainPlan(
            write_slots(chunks, block_size),
            {window: tuple(_plan_prefill(chunk, block_size, window, dtype) for chunk in longer) for window in windows},
            {window: _plan_decodes(singles, block_size, window, dtype) for window in windows},
        )

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return torch.tanh(x / cap) * cap

    def attention(
        self, q: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, window: int | None, scale: float,
        soft_cap: float | None = None,
    ) -> Tensor:  # fmt: skip
        assert isinstance(plan, PlainPlan)
        out = torch.empty_like(q)
        for prefill in plan.prefills[window]:
            out[prefill.rows] = _attend_prefill(q[prefill.rows], keys, values, prefill, scale, soft_cap)
        for decodes in plan.decodes[window]:
            out[decodes.rows] = _attend_decodes(q[decodes.rows], keys, values, decodes, scale, soft_cap)
        return out

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def log(self, x: Tensor) -> Tensor:
        return x.log()


def _first_seen(chunk: Chunk, window: int | None) -> int:
    """Position of the oldest key that any row of the chunk sees."""
    return 0 if window is None else max(0, chunk.context_len + 1 - window)


def _plan_prefill(chunk: Chunk, block_size: int, window: int | None, dtype: torch.dtype) -> _Prefill:
    first = _first_seen(chunk, window)
    rows = torch.arange(chunk.context_len, chunk.total_len, dtype=torch.int32)  # half of what a mask takes meanwhile
    distance = rows[:, None] - torch.arange(first, chunk.total_len, dtype=torch.int32)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return _Prefill(
        slice(chunk.first_row, chunk.first_row + chunk.num_rows),
        token_slots(chunk, block_size, first),
        _additive(seen, dtype),
    )


def _plan_decodes(
    chunks: tuple[Chunk, ...], block_size: int, window: int | None, dtype: torch.dtype
) -> tuple[_Decodes, ...]:
    """Grouped by powers of two: padding to the longest of a step would let one long context be paid for by all."""
    groups: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
    for chunk in chunks:
        slots = token_slots(chunk, block_size, _first_seen(chunk, window))
        groups[(max(_SHORT_CONTEXT, len(slots)) - 1).bit_length()].append((chunk.first_row, slots))
    return tuple(_pad(piece, dtype) for group in groups.values() for piece in _pieces(group))


def _pieces(group: list[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """Of a group, so that no more than _GATHERED_SLOTS are gathered at once."""
    count = max(1, _GATHERED_SLOTS // max(len(slots) for _, slots in group))
    return (group[i : i + count] for i in range(0, len(group), count))


def _pad(group: list[tuple[int, Tensor]], dtype: torch.dtype) -> _Decodes:
    """``group``: row and slots of each sequence."""
    rows, slots = zip(*group, strict=True)
    padded = torch.nn.utils.rnn.pad_sequence(list(slots), batch_first=True)
    seen = torch.arange(padded.shape[1]) < torch.tensor([len(s) for s in slots])[:, None]
    return _Decodes(torch.tensor(rows), padded, _additive(seen, dtype)[:, None, None, :])


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _attend_prefill(
    q: Tensor, keys: Tensor, values: Tensor, plan: _Prefill, scale: float, soft_cap: float | None
) -> Tensor:
    """q [rows, query heads, head_dim] of one sequence; query heads of a kv head are a batch dimension."""
    rows, heads, dim = q.shape
    kv_heads = keys.shape[1]
    k, v = (
        cache[plan.slots].to(q.dtype).transpose(0, 1)[:, None] for cache in (keys, values)
    )  # [kv, 1, context, head_dim]
    grouped = q.view(rows, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)  # [kv, group, rows, head_dim]
    share = (kv_heads, heads // kv_heads, -1, -1)
    out = _attend(grouped, k.expand(share), v.expand(share), plan.mask, scale, soft_cap)
    return out.permute(2, 0, 1, 3).reshape(rows, heads, dim)


def _attend_decodes(
    q: Tensor, keys: Tensor, values: Tensor, plan: _Decodes, scale: float, soft_cap: float | None
) -> Tensor:
    """q [sequences, query heads, head_dim], one token each; query heads of a kv head act as its rows."""
    sequences, heads, dim = q.shape
    kv_heads = keys.shape[1]
    k, v = (
        cache[plan.slots].to(q.dtype).transpose(1, 2) for cache in (keys, values)
    )  # [sequences, kv, context, head_dim]
    grouped = q.view(sequences, kv_heads, heads // kv_heads, dim)
    mask = plan.mask.expand(-1, 1, heads // kv_heads, -1)
    return _attend(grouped, k, v, mask, scale, soft_cap).reshape(sequences, heads, dim)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None) -> Tensor:
    """[batch, heads, rows, head_dim] each; ``mask`` is added to the scores."""
    if soft_cap is None:
        return functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    step = max(1, _BENT_SCORES // (q.shape[:-2].numel() * k.shape[-2]))
    parts = zip(torch.split(q, step, -2), torch.split(mask, step, -2), strict=True)
    return torch.cat([_attend_bent(some, k, v, its, scale, soft_cap) for some, its in parts], -2)


def _attend_bent(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float) -> Tensor:
    """By hand: torch's fused attention cannot bend scores."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-1, -2)).to(wide) * scale
    return (torch.tanh(scores / soft_cap) * soft_cap + mask).softmax(-1).to(q.dtype) @ v
