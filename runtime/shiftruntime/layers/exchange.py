"""The two all-to-alls of a sequence-parallel step: rows of all heads ↔ all rows of this rank's heads.

A kv head that several ranks cache is repeated in the send buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from shiftcore.layout import Gear, HeadLayout
from torch import Tensor


class Exchanger(Protocol):
    """The part of parallel.comm.Comm that an exchange needs."""

    def all_to_all(self, x: Tensor, group: tuple[int, ...]) -> Tensor: ...


@dataclass(frozen=True)
class HeadPlan:
    """Heads of one rank in one gear."""

    group: tuple[int, ...]  # sequence group
    query: range  # projected query heads
    kv: range  # projected kv heads
    sent_kv: Tensor  # [S, kv heads per rank] int64: which projected kv heads each member gets
    local_query: int
    local_kv: int

    @staticmethod
    def of(heads: HeadLayout, gear: Gear, rank: int) -> HeadPlan:
        group = gear.sequence_group(rank)
        sent = torch.tensor([list(heads.kv_sent_to(gear, member)) for member in group])
        query, kv = heads.projected_query_range(gear, rank), heads.projected_kv_range(gear, rank)
        return HeadPlan(group, query, kv, sent, len(heads.query_range(rank)), len(heads.kv_range(rank)))


def rows_to_heads(q: Tensor, k: Tensor, v: Tensor, plan: HeadPlan, comm: Exchanger) -> tuple[Tensor, Tensor, Tensor]:
    """q [rows, projected heads, head_dim], k, v [rows, projected kv heads, head_dim] → all rows of the local heads."""
    members = len(plan.group)
    if members == 1:
        return q, k, v
    rows, _, dim = q.shape
    to_member = q.view(rows, members, plan.local_query, dim)
    parts = (to_member, k[:, plan.sent_kv], v[:, plan.sent_kv])  # each [rows, S, heads, head_dim]
    send = torch.cat(parts, dim=2).transpose(0, 1).contiguous()  # [S, rows, heads, head_dim]
    received = comm.all_to_all(send, plan.group).reshape(members * rows, -1, dim)
    q, k, v = torch.split(received, [plan.local_query, plan.local_kv, plan.local_kv], dim=1)
    return q, k, v


def heads_to_rows(x: Tensor, plan: HeadPlan, comm: Exchanger) -> Tensor:
    """x [S * rows, local heads, head_dim] → [rows, projected heads * head_dim]."""
    members = len(plan.group)
    if members == 1:
        return x.reshape(x.shape[0], -1)
    _, heads, dim = x.shape
    received = comm.all_to_all(x.reshape(members, -1, heads, dim).contiguous(), plan.group)
    return received.transpose(0, 1).reshape(-1, members * heads * dim)
