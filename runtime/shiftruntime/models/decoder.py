"""One decoder-only transformer on one rank; every step may run in another gear on the same weights and KV cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from shiftcore.layout import Gear
from torch import Tensor
from torch.nn import functional

from shiftruntime.config import Experts, ModelConfig
from shiftruntime.kernels.ops import AttentionPlan, Ops
from shiftruntime.kernels.ops import Chunk as Chunk
from shiftruntime.layers.attention import StepState, attend
from shiftruntime.layers.exchange import HeadPlan
from shiftruntime.layers.mlp import MlpWeights, feed_forward
from shiftruntime.layers.moe import ExpertPlan, MoeWeights, sparse_feed_forward
from shiftruntime.layers.rope import Rope
from shiftruntime.models.kv_cache import KvCache as KvCache
from shiftruntime.models.weights import LayerWeights, layer_views, lm_head_shard
from shiftruntime.parallel.comm import Comm


@dataclass(frozen=True)
class StepBatch:
    """One step, the same on every rank."""

    gear: Gear
    token_ids: Tensor  # [tokens] int64, without padding
    positions: Tensor  # [tokens] int64
    chunks: tuple[Chunk, ...]  # in row order, together all rows
    logit_rows: Tensor  # [m] int64, rows whose logits are needed


class Decoder:
    """One rank. ``weights`` are the views of the shared arena (models.weights.view)."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], comm: Comm, ops: Ops, kv: KvCache) -> None:
        config.check_layout(comm.size)
        ops.check_model(config, comm.size)
        self.config, self.comm, self.ops, self.kv = config, comm, ops, kv
        self._weights = weights
        self._heads = config.heads(comm.size)
        self._lm_head = lm_head_shard(weights, comm.size, comm.rank)
        self._final_norm = weights["final_norm"]
        self._gears: dict[Gear, tuple[HeadPlan, tuple[LayerWeights, ...]]] = {}
        self.dtype = weights["embed"].dtype
        self._multiplier = torch.tensor(config.embedding_multiplier, dtype=self.dtype).item()  # rounded as trained
        wide = torch.promote_types(self.dtype, torch.float32)
        self._rope = Rope.of(config.rope_theta, config.head_dim, config.rope_scaling, wide)
        self._rope_sliding = self._rope
        if config.rope_theta_local is not None:
            self._rope_sliding = Rope.of(config.rope_theta_local, config.head_dim, config.rope_scaling_local, wide)

    def forward(self, batch: StepBatch) -> Tensor:
        """Logits of this rank's vocabulary shard, [m, padded vocabulary / P], rows in the order of ``logit_rows``."""
        return self.logits(self.hidden(batch))

    @property
    def shard_width(self) -> int:
        """Logits per row on this rank."""
        return self._lm_head.shape[0]

    @torch.inference_mode()
    def hidden(self, batch: StepBatch) -> Tensor:
        """What the LM head makes logits of, [m, hidden] on every rank; all of them at once may be too many."""
        gear = batch.gear
        assert gear.ranks == self.comm.size, f"gear {gear} needs {gear.ranks} ranks, there are {self.comm.size}"
        heads, layers = self._views(gear)
        num_tokens = batch.token_ids.shape[0]
        padding = gear.padded(num_tokens) - num_tokens
        rows = _rows_of(gear, num_tokens, self.comm.rank)
        x = self._embed(functional.pad(batch.token_ids, (0, padding))[rows])  # [rows, hidden]
        state = self._state(batch, heads, functional.pad(batch.positions, (0, padding))[rows])
        for i, layer in enumerate(layers):
            x = self._layer(x, i, layer, state)
        if not len(batch.logit_rows):  # only chunks in the middle of prompts
            return x.new_zeros((0, x.shape[1]))
        return self._needed_rows(x, batch, rows)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Of some rows of ``hidden``, [rows, padded vocabulary / P]."""
        if not len(hidden):
            return hidden.new_zeros((0, self.shard_width))
        return self._logits(hidden)

    def _views(self, gear: Gear) -> tuple[HeadPlan, tuple[LayerWeights, ...]]:
        if gear not in self._gears:
            heads = HeadPlan.of(self._heads, gear, self.comm.rank)
            self._gears[gear] = heads, layer_views(self._weights, self.config, gear, self.comm.rank, heads)
        return self._gears[gear]

    def _state(self, batch: StepBatch, heads: HeadPlan, positions: Tensor) -> StepState:
        config = self.config
        return StepState(
            batch.token_ids.shape[0],
            heads,
            batch.gear.tensor_group(self.comm.rank),
            self._attention_plans(batch),
            self._rope.tables(positions, self.ops),
            self._rope_sliding.tables(positions, self.ops),
            None if config.experts is None else self._expert_plan(config.experts, batch),
        )

    def _attention_plans(self, batch: StepBatch) -> tuple[AttentionPlan, ...]:
        """Per layer; those that share block tables share a plan."""
        config = self.config
        groups = [group.layers for group in self.kv.groups] or [tuple(range(config.num_layers))]
        plans: dict[int, AttentionPlan] = {}
        for i, layers in enumerate(groups):
            windows = tuple(sorted({config.window(layer) for layer in layers}, key=lambda w: w or 0))
            chunks = tuple(chunk.of_group(i) for chunk in batch.chunks)
            plan = self.ops.plan_attention(chunks, self.kv.block_size, windows, self.dtype)
            plans |= dict.fromkeys(layers, plan)
        return tuple(plans[layer] for layer in range(config.num_layers))

    def _expert_plan(self, experts: Experts, batch: StepBatch) -> ExpertPlan:
        return ExpertPlan.of(experts, batch.gear, self.comm.rank, batch.token_ids.shape[0])

    def _embed(self, token_ids: Tensor) -> Tensor:
        x = self._weights["embed"][token_ids]
        return x if self._multiplier == 1.0 else x * self._multiplier

    def _layer(self, x: Tensor, i: int, w: LayerWeights, state: StepState) -> Tensor:
        config, ops, comm, eps = self.config, self.ops, self.comm, self.config.rms_norm_eps
        comm.tick()  # a rank alone meets no collective
        normed = ops.rms_norm(x, w.attn_norm, eps)
        mixed = attend(normed, w.attention, i, state, self.kv.layer(i), config, ops, comm)
        x = x + (mixed if w.post_attn_norm is None else ops.rms_norm(mixed, w.post_attn_norm, eps))
        normed = ops.rms_norm(x, w.mlp_norm, eps)
        fed = self._feed(normed, w.mlp, state)
        return x + (fed if w.post_mlp_norm is None else ops.rms_norm(fed, w.post_mlp_norm, eps))

    def _feed(self, x: Tensor, w: MlpWeights | MoeWeights, state: StepState) -> Tensor:
        activation, ops, comm = self.config.activation, self.ops, self.comm
        if isinstance(w, MlpWeights):
            return feed_forward(x, w, activation, state.tensor_group, ops, comm)
        assert state.experts is not None, "a sparse layer without a plan for its experts"
        return sparse_feed_forward(x, w, state.experts, activation, ops, comm)

    def _needed_rows(self, x: Tensor, batch: StepBatch, rows: slice) -> Tensor:
        """Final norm of the rows that need logits, [m, hidden] on every rank; only these leave the shards."""
        eps = self.config.rms_norm_eps
        group = batch.gear.sequence_group(self.comm.rank)
        if len(group) == 1:
            return self.ops.rms_norm(x[batch.logit_rows], self._final_norm, eps)
        per_rank = x.shape[0]
        owner = batch.logit_rows // per_rank  # [m] sequence index
        counts = torch.bincount(owner, minlength=len(group))
        order = torch.argsort(owner, stable=True)  # [m], grouped by owner
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order)) - starts[owner[order]]  # place in the owner's buffer
        mine = batch.logit_rows[owner == batch.gear.sequence_index(self.comm.rank)] - rows.start
        buffer = x.new_zeros((int(counts.max()), x.shape[1]))
        buffer[: len(mine)] = self.ops.rms_norm(x[mine], self._final_norm, eps)
        return self.comm.all_gather(buffer, group)[owner, place]

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.ops.linear_columns(x, self._lm_head)
        if self.config.logit_soft_cap is not None:
            logits = self.ops.soft_cap(logits, self.config.logit_soft_cap)
        width = self._lm_head.shape[0]
        unused = self.comm.rank * width + width - self.config.vocab_size
        if unused > 0:  # padding rows of the vocabulary
            logits[:, max(0, width - unused) :] = float("-inf")
        return logits


def _rows_of(gear: Gear, num_tokens: int, rank: int) -> slice:
    """Rows of the padded step that lie on this rank."""
    per_rank = gear.padded(num_tokens) // gear.sequence
    first = gear.sequence_index(rank) * per_rank
    return slice(first, first + per_rank)
