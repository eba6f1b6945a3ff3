"""Gated feed-forward of one layer: columns, activation, rows, reduce."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shiftruntime.config import Activation
from shiftruntime.kernels.ops import Ops, Reducer


@dataclass(frozen=True)
class MlpWeights:
    """Views of one rank in one gear."""

    gate: Tensor  # [intermediate / T, hidden]
    up: Tensor
    down: Tensor  # [hidden, intermediate / T], a strided K slice
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None  # [hidden]


def feed_forward(
    x: Tensor, w: MlpWeights, activation: Activation, group: tuple[int, ...], ops: Ops, comm: Reducer
) -> Tensor:
    """x [rows, hidden] → [rows, hidden], summed over the tensor group."""
    gate = ops.linear_columns(x, w.gate, w.gate_bias)
    up = ops.linear_columns(x, w.up, w.up_bias)
    reduced = ops.linear_rows(ops.gated(gate, up, activation), w.down, comm, group)
    return reduced if w.down_bias is None else reduced + w.down_bias
