"""What a step takes on GPUs that nobody here owns: a roofline over the layers, with the collectives of each gear.

Per layer and rank, for a gear (S, T) of P = S*T ranks and a step of n tokens, a rank has ceil(n / S) rows:

- each linear layer takes the longer of its arithmetic, in whole waves of tiles, and of reading its share of the weights
  (1/T of them);
- norms, activations and rotations read and write rows; attention of prompts is arithmetic over pairs of tokens, that
  of decodes is reading the cache; both have 1/P of the heads in every gear;
- T > 1: two all-reduces of rows x hidden; S > 1: two all-to-alls, of queries, keys and values and of the output.
  Experts are spread over all P ranks; in sequence gears their rows travel by two more all-to-alls.

The head works on the rows that are sampled from. The host adds a fixed time to every step. Nothing overlaps but, where
steps are planned ahead, the engine's process with the step before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable
from shiftcore.layout import Gear, HeadLayout
from shiftcore.refinement import next_size

from shiftsim.executor.fitted import Fitted
from shiftsim.executor.memory import Engine, kv_tokens
from shiftsim.hardware import Gpu, Software
from shiftsim.models import Model
from shiftsim.work import CALIBRATION_CONTEXT_TOKENS, Work, prompt_pairs

ACTIVATION_BYTES = 2  # bf16 between layers and on the wire


@dataclass(frozen=True)
class ModelledExecutor:
    """An executor from hardware facts, the four fitted numbers and a model's shape; see the module."""

    model: Model
    gpu: Gpu
    engine: Engine
    software: Software
    fitted: Fitted
    # Of all layers by gear and tokens: a decode run asks for the same a hundred times.
    _known: dict[tuple[Gear, int], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Refuses what no pod could serve.
        HeadLayout(self.model.query_heads, self.model.kv_heads, self.engine.base.ranks)

    @cached_property
    def kv_tokens(self) -> int:
        """Tokens that the cache holds; raises UserError when not one fits."""
        return kv_tokens(self.model, self.gpu, self.engine, self.software)

    @cached_property
    def table(self) -> GearTable:
        """Costs by size as a pod measures them at its start: decodes behind a short context while there may be so many
        sequences, prompts from their beginning beyond; what context adds, with decodes. Sizes near a crossover follow
        as in a pod whose steps are fast enough for its budget."""
        largest = self.engine.max_batched_tokens
        sizes = {1 << i for i in range(largest.bit_length())} | {largest}
        table = self._calibrated(sizes)
        while (size := next_size(table)) is not None:
            sizes.add(size)
            table = self._calibrated(sizes)
        return table

    def seconds(self, gear: Gear, work: Work) -> float:
        """Of one step, the host's part included."""
        rows = self._rows(gear, work.tokens, work.sampled)
        return rows + work.prefill_pairs * self._pair_seconds + work.decode_context * self._context_seconds

    def decode_seconds(self, gear: Gear, work: Work, steps: int) -> Sequence[float]:
        """Of so many steps in a row in which the same requests decode."""
        rows, each, first = self._rows(gear, work.decodes, work.sampled), self._context_seconds, work.decode_context
        return [rows + tokens * each for tokens in range(first, first + steps * work.decodes, work.decodes)]

    def engine_seconds(self, work: Work) -> tuple[float, float]:
        """Of the host's part, what is not the ranks'."""
        software = self.software
        sequences = work.decodes + (work.prefill_tokens > 0)  # a few prompts at most, mostly one
        whole = software.engine_seconds + software.engine_seconds_per_sequence * sequences
        return whole, min(whole, self.fitted.host_seconds)

    def tokenize_seconds(self, prompt_tokens: int) -> float:
        """Before the engine sees a prompt."""
        return prompt_tokens * self.software.tokenize_seconds_per_token

    def parts(self, gear: Gear, work: Work) -> Mapping[str, float]:
        """The seconds of a step by cause, for people; their sum is ``seconds``."""
        rows = -(-work.tokens // gear.sequence)
        return {
            "linear": self.model.layers * self._linear(gear, rows, work.tokens),
            "elementwise": self.model.layers * self._elementwise(gear, rows, work.tokens),
            "attention of prompts": work.prefill_pairs * self._pair_seconds,
            "attention of decodes": work.decode_context * self._context_seconds,
            "collectives": self.model.layers * self._collectives(gear, rows),
            "head": self._head(gear, work.sampled),
            "host": self.fitted.host_seconds,
        }

    # --- by rows ------------------------------------------------------------------------------------------------------

    def _rows(self, gear: Gear, tokens: int, sampled: int) -> float:
        """All that does not depend on the contexts."""
        layers = self._known.get((gear, tokens))
        if layers is None:
            layers = self._known[gear, tokens] = self._layers(gear, tokens)
        return layers + self._head(gear, sampled) + self.fitted.host_seconds

    def _layers(self, gear: Gear, tokens: int) -> float:
        rows = -(-tokens // gear.sequence)
        layer = self._linear(gear, rows, tokens) + self._elementwise(gear, rows, tokens) + self._collectives(gear, rows)
        return self.model.layers * layer

    def _linear(self, gear: Gear, rows: int, tokens: int) -> float:
        """The linear layers of one layer."""
        model, T = self.model, gear.tensor
        queries, keys = model.query_heads * model.head_dim, 2 * max(model.kv_heads, T) * model.head_dim
        shapes = [(model.hidden, (queries + keys) / T), (queries / T, model.hidden)]
        if not model.experts:
            shapes += [(model.hidden, 2 * model.ffn / T), (model.ffn / T, model.hidden)]
        dense = sum(self._matmul(rows, k, n, k * n * model.weight_bytes) for k, n in shapes)
        return dense + (self._experts(gear, tokens) if model.experts else 0.0)

    def _experts(self, gear: Gear, tokens: int) -> float:
        """Those of one rank: 1/P of the pairs of a token and an expert, and the experts that anybody chose."""
        model, P = self.model, gear.ranks
        share = model.experts_per_token / model.experts
        chosen = model.experts * (1 - (1 - share) ** tokens) / P  # of equally likely experts
        rows = tokens * model.experts_per_token / P
        return sum(
            self._matmul(rows, k, n, chosen * k * n * model.weight_bytes)
            for k, n in ((model.hidden, 2 * model.ffn), (model.ffn, model.hidden))
        )

    def _matmul(self, rows: float, k: float, n: float, weight_bytes: float) -> float:
        peak = self.gpu.fp8_flops if self.model.weight_bytes == 1 else self.gpu.bf16_flops
        arithmetic = 2 * self._tiled(rows, n) * k / (peak * self.fitted.linear_of_peak)
        # Read in the weights' width, written in that of the activations.
        moved = weight_bytes + rows * (k * self.model.weight_bytes + n * ACTIVATION_BYTES)
        return max(arithmetic, self._moving(moved))

    def _tiled(self, rows: float, n: float) -> float:
        """Results that are computed to have rows x n of them: waves of tiles, one tile per multiprocessor.

        Of one row of tiles there are kernels with smaller ones, and reading the weights takes longer anyway.
        """
        tile, together = self.software.tile, self.gpu.multiprocessors
        if rows <= tile:
            return rows * n
        waves = ceil(ceil(rows / tile) * ceil(n / tile) / together)
        return waves * together * tile * tile

    def _elementwise(self, gear: Gear, rows: int, tokens: int) -> float:
        """Bytes that kernels between the linear layers read and write, per layer.

        Two norms with their residual: read both, write the sum and the normed row in the weights' width. The gated
        activation: read two halves, write one. Rotation and cache: read and write queries, keys and values of the
        rank's heads; the attention's output once more for the width of the next linear layer.
        """
        model = self.model
        width, heads = model.weight_bytes, (model.query_heads + 2 * model.kv_heads) * model.head_dim
        norms = 2 * (3 * ACTIVATION_BYTES + width) * model.hidden
        gate = (2 * ACTIVATION_BYTES + width) * model.ffn * max(1, model.experts_per_token) / gear.tensor
        rotation = 2 * ACTIVATION_BYTES * heads / gear.ranks
        output = (ACTIVATION_BYTES + width) * model.query_heads * model.head_dim / gear.tensor
        return self._moving(rows * (norms + gate + output) + tokens * rotation)

    def _collectives(self, gear: Gear, rows: int) -> float:
        """Of one layer."""
        model, S, T = self.model, gear.sequence, gear.tensor
        queries, keys = model.query_heads * model.head_dim, 2 * max(model.kv_heads, gear.ranks) * model.head_dim
        seconds = 0.0
        if T > 1:
            seconds += 2 * self._all_reduce(rows * model.hidden * ACTIVATION_BYTES, T)
        if S > 1:
            row_bytes = ACTIVATION_BYTES / T
            seconds += self._all_to_all(rows * (queries + keys) * row_bytes, S)
            seconds += self._all_to_all(rows * queries * row_bytes, S)
            if model.experts:
                seconds += 2 * self._all_to_all(rows * model.experts_per_token * model.hidden * row_bytes, gear.ranks)
        return seconds

    def _all_reduce(self, size_bytes: float, ranks: int) -> float:
        """A ring sends each byte twice over, less the own share."""
        wire = 2 * (ranks - 1) / ranks * size_bytes
        bandwidth = self.gpu.link_bytes_per_second * self.fitted.all_reduce_of_link
        return self.software.all_reduce_seconds + wire / bandwidth

    def _all_to_all(self, size_bytes: float, ranks: int) -> float:
        wire = (ranks - 1) / ranks * size_bytes
        bandwidth = self.gpu.link_bytes_per_second * self.software.all_to_all_of_link
        return self.fitted.all_to_all_seconds + wire / bandwidth

    def _head(self, gear: Gear, sampled: int) -> float:
        """In bf16; over all ranks as we have it, over the tensor ranks only where weights are copies, as published."""
        if not sampled:
            return 0.0
        ways = gear.tensor if self.engine.copies else gear.ranks
        weights = self.model.embedding_weights / ways
        arithmetic = 2 * sampled * weights / (self.gpu.bf16_flops * self.fitted.linear_of_peak)
        return max(arithmetic, self._moving(weights * ACTIVATION_BYTES))

    # --- by context ---------------------------------------------------------------------------------------------------

    @cached_property
    def _pair_seconds(self) -> float:
        """Arithmetic of one pair of a prompt's token and one that it looks back at: scores and values, all layers."""
        flops = 4 * self.model.query_heads * self.model.head_dim * self.model.layers / self.engine.base.ranks
        return flops / (self.gpu.bf16_flops * self.software.attention_of_peak)

    @cached_property
    def _context_seconds(self) -> float:
        """Reading the keys and values of one cached token on one rank, all layers."""
        heads = max(1.0, self.model.kv_heads / self.engine.base.ranks)
        return self._moving(2 * heads * self.model.head_dim * self.model.kv_bytes * self.model.layers)

    def _moving(self, size_bytes: float) -> float:
        return size_bytes / (self.gpu.memory_bytes_per_second * self.software.memory_of_peak)

    def _calibrated(self, sizes: set[int]) -> GearTable:
        return GearTable(self.engine.base, {gear: self._curve(gear, sizes) for gear in self.engine.gears})

    def _curve(self, gear: Gear, sizes: set[int]) -> CostCurve:
        points = (CostPoint(n, self.seconds(gear, self._calibration_step(n)), 0.0, 1) for n in sorted(sizes))
        return CostCurve(tuple(points), self._context_seconds)

    def _calibration_step(self, tokens: int) -> Work:
        if tokens <= self.engine.max_num_seqs:
            return Work(0, 0, tokens, tokens * CALIBRATION_CONTEXT_TOKENS, tokens)
        full, rest = divmod(tokens, self.model.max_model_len)
        pairs = full * prompt_pairs(self.model.max_model_len) + prompt_pairs(rest)
        return Work(tokens, pairs, 0, 0, full + (rest > 0))
