"""The arithmetic seam: layers call these and nothing else, so that one decoder serves the fast and the exact mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from shiftruntime.config import Activation, ModelConfig


class Reducer(Protocol):
    """The part of parallel.comm.Comm that arithmetic needs (kernels do not import parallel)."""

    def all_reduce(self, x: Tensor, group: tuple[int, ...]) -> Tensor: ...

    def all_gather(self, x: Tensor, group: tuple[int, ...]) -> Tensor: ...


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence in this step: rows [first_row, first_row + num_rows) of the step."""

    first_row: int
    num_rows: int
    context_len: int  # tokens of the sequence in the KV cache before this step
    block_table: tuple[int, ...]  # of the layers at hand; negative where no row of the chunk sees the block
    other_tables: tuple[tuple[int, ...], ...] = ()  # of the cache's further layer groups

    @property
    def total_len(self) -> int:
        return self.context_len + self.num_rows

    def of_group(self, group: int) -> Chunk:
        """As the layers of one group see it."""
        return replace(self, block_table=(self.block_table, *self.other_tables)[group], other_tables=())


class AttentionPlan(Protocol):
    """What attention precomputes once per step and uses in every layer; each Ops has its own."""

    @property
    def write_slots(self) -> Tensor: ...  # [tokens] int64, the flat KV slot of every token of the step


@dataclass(frozen=True)
class ExpertWeights:
    """One rank's experts of one layer, whole and the same views in every gear."""

    first: int  # id of the first
    gate: Tensor  # [experts of rank, intermediate, hidden]
    up: Tensor
    down: Tensor  # [experts of rank, hidden, intermediate]


class Ops(Protocol):
    @property
    def name(self) -> str: ...

    def check_model(self, config: ModelConfig, ranks: int) -> None:
        """Raises StartupError(InvalidLayout) for a model that this arithmetic cannot run on so many ranks."""
        ...

    def linear_columns(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [rows, K] · w [N, K] → [rows, N]; w is a slice of output columns."""
        ...

    def linear_rows(self, x: Tensor, w: Tensor, reducer: Reducer, group: tuple[int, ...]) -> Tensor:
        """x [rows, K/T] · w [N, K/T] (strided) summed over the group → [rows, N], bitwise equal on its members."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Over the last dimension; ``weight`` is the whole factor (a family's offset is already in it)."""
        ...

    def rope_tables(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        """positions [rows], inv_freq [head_dim/2] → cos, sin [rows, 1, head_dim/2]."""
        ...

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [rows, heads, head_dim]; pairs are (i, i + head_dim/2)."""
        ...

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """activation(gate) * up, elementwise."""
        ...

    def route(self, logits: Tensor, per_token: int, normalised: bool) -> tuple[Tensor, Tensor]:
        """logits [rows, experts] → ids of each row's experts in ascending order and their weights, [rows, per_token].

        Softmax over all experts, then the largest, of equal ones the lowest ids. int64, and float32 at least.
        """
        ...

    def run_experts(self, x: Tensor, ids: Tensor, weights: Tensor, w: ExpertWeights, activation: Activation) -> Tensor:
        """x [rows, hidden] → what the experts of ``w`` add to each row, weighted, [rows, ..., hidden].

        Results of several ranks are to be added elementwise, in any order, before ``sum_experts``.
        """
        ...

    def sum_experts(self, parts: Tensor) -> Tensor:
        """[rows, ..., hidden] → [rows, hidden]: what all experts together add to each row."""
        ...

    def plan_attention(
        self, chunks: tuple[Chunk, ...], block_size: int, windows: tuple[int | None, ...], dtype: torch.dtype
    ) -> AttentionPlan: ...

    def attention(
        self, q: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, window: int | None, scale: float,
        soft_cap: float | None = None,
    ) -> Tensor:  # fmt: skip
        """q [tokens, query heads of rank, head_dim]; keys, values [slots, kv heads of rank, head_dim] → like q.

        The cache may be of a coarser dtype than q. ``soft_cap`` bends the scaled scores, before the mask.
        """
        ...

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap), elementwise."""
        ...

    def exp(self, x: Tensor) -> Tensor: ...

    def log(self, x: Tensor) -> Tensor: ...


def token_slots(chunk: Chunk, block_size: int, first: int = 0, *, is_masked: bool = False) -> Tensor:
    """Flat KV slots of positions [first, total_len) of the chunk's sequence, int64.

    With ``is_masked`` what was given back behind a window has the slot of the last token: something finite to hide.
    """
    assert chunk.total_len <= len(chunk.block_table) * block_size, (
        f"{chunk.total_len} tokens need more than {len(chunk.block_table)} blocks of {block_size}"
    )
    first_block = first // block_size  # the work is in proportion to what is asked for: most chunks are decodes
    table = chunk.block_table[first_block:]
    blocks = torch.tensor(table, dtype=torch.int64)
    slots = (blocks[:, None] * block_size + torch.arange(block_size)).view(-1)
    slots = slots[first - first_block * block_size : chunk.total_len - first_block * block_size]
    if is_masked:
        return torch.where(slots < 0, slots[-1], slots)
    assert min(table) >= 0, f"a block that is seen was given back: {chunk}, from {first}"
    return slots


def write_slots(chunks: tuple[Chunk, ...], block_size: int) -> Tensor:
    """Flat KV slots of the step's tokens in row order, [tokens] int64."""
    num_rows = 0
    for chunk in chunks:
        assert chunk.first_row == num_rows, f"chunk starts at row {chunk.first_row}, expected {num_rows}"
        num_rows += chunk.num_rows
    return torch.cat([token_slots(chunk, block_size, chunk.context_len) for chunk in chunks])
