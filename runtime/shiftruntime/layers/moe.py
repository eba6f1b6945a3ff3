"""Sparse feed-forward of one layer in any gear: route own rows, bring them to their experts and the results back.

The experts lie on the same ranks in every gear. In the tp gear every rank has all rows, and the reduction over the
group adds up what the experts give. In the other gears rows travel, once to each rank that has experts for them; of the
T ranks that hold a row one sends it, and they share the results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from shiftcore.experts import Dispatch, ExpertLayout
from shiftcore.layout import Gear
from torch import Tensor

from shiftruntime.config import Activation, Experts
from shiftruntime.kernels.ops import ExpertWeights, Ops
from shiftruntime.parallel.comm import Comm


@dataclass(frozen=True)
class MoeWeights:
    """Views of one rank, the same in every gear."""

    router: Tensor  # [experts, hidden]
    experts: ExpertWeights


@dataclass(frozen=True)
class ExpertPlan:
    """What all sparse layers of one step share on one rank."""

    experts: Experts
    tensor_group: tuple[int, ...]
    travels: bool  # whether rows travel; else every rank has them all
    dispatch: Dispatch
    owners: Tensor  # [experts] int64, the rank of each

    @staticmethod
    def of(experts: Experts, gear: Gear, rank: int, num_tokens: int) -> ExpertPlan:
        owners = torch.tensor(ExpertLayout(experts.count, gear.ranks).owners())
        dispatch = Dispatch.of(gear, rank, num_tokens)
        return ExpertPlan(experts, gear.tensor_group(rank), gear.sequence > 1, dispatch, owners)


def sparse_feed_forward(
    x: Tensor, w: MoeWeights, plan: ExpertPlan, activation: Activation, ops: Ops, comm: Comm
) -> Tensor:
    """x [rows, hidden] of this rank → [rows, hidden]; padding rows become zero where rows travel."""
    if not plan.travels:
        ids, weights = _route(x, w, plan, ops)
        parts = ops.run_experts(x, ids, weights, w.experts, activation)
        return ops.sum_experts(comm.all_reduce(parts, plan.tensor_group))
    rows = plan.dispatch.rows
    own = _dispatched(x[rows.start : rows.stop], w, plan, activation, ops, comm)  # [width, hidden]
    # The parts of the group may be longer together than the rows, never shorter.
    return comm.all_gather(own, plan.tensor_group).flatten(0, 1)[: x.shape[0]]


def _route(x: Tensor, w: MoeWeights, plan: ExpertPlan, ops: Ops) -> tuple[Tensor, Tensor]:
    return ops.route(ops.linear_columns(x, w.router), plan.experts.per_token, plan.experts.normalised)


def _dispatched(x: Tensor, w: MoeWeights, plan: ExpertPlan, activation: Activation, ops: Ops, comm: Comm) -> Tensor:
    """x [rows to send, hidden] → [width, hidden], zero after those rows."""
    ids, weights = _route(x, w, plan, ops)
    wanted = torch.zeros((x.shape[0], comm.size), dtype=torch.bool).scatter_(1, plan.owners[ids], True)
    ranks, rows = wanted.t().nonzero(as_tuple=True)  # by rank, then row
    counts = torch.bincount(ranks, minlength=comm.size).tolist()
    packed, returning = comm.all_to_all_v(_pack(x[rows], ids[rows], weights[rows]), counts)
    visitors, their_ids, their_weights = _unpack(packed, x, ids, weights)
    parts = ops.run_experts(visitors, their_ids, their_weights, w.experts, activation)
    parts, _ = comm.all_to_all_v(parts, returning)
    together = parts.new_zeros((plan.dispatch.width, *parts.shape[1:])).index_add_(0, rows, parts)
    return ops.sum_experts(together)


def _pack(*columns: Tensor) -> Tensor:
    """Several [rows, ...] of different types → [rows, bytes], so that they travel together."""
    return torch.cat([column.contiguous().view(torch.uint8) for column in columns], dim=1)


def _unpack(packed: Tensor, *like: Tensor) -> tuple[Tensor, ...]:
    """What _pack packed, with the types and widths of ``like``."""
    sizes = [column.shape[1] * column.element_size() for column in like]
    parts = zip(torch.split(packed, sizes, dim=1), like, strict=True)
    # A copy even of one row: a view of another type needs an aligned start.
    return tuple(part.clone(memory_format=torch.contiguous_format).view(column.dtype) for part, column in parts)
