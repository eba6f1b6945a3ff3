"""An executor for the simulator whose steps cost what a line says, in gears of two ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable
from shiftcore.layout import Gear
from shiftsim.work import Work

TP2, SP2 = Gear(1, 2), Gear(2, 1)
# Seconds of a step, and per token: the tp gear begins lower and the sequence gear is flatter; they cross at 75 tokens.
COSTS = {TP2: (0.005, 0.0001), SP2: (0.0125, 0.0000001)}


@dataclass
class LinearExecutor:
    kv_tokens: int = 4096
    base: Gear = SP2
    pair_seconds: float = 1.1e-8
    costs: dict[Gear, tuple[float, float]] = field(default_factory=lambda: dict(COSTS))
    tokenize: float = 0.0  # seconds per token
    engine: tuple[float, float] = (0.0, 0.0)  # what the engine's process takes of a step, and what of that is charged

    @property
    def table(self) -> GearTable:
        sizes = [1 << i for i in range(14)]
        curves = {
            gear: CostCurve(tuple(CostPoint(n, a + b * n, 0.0, 1) for n in sizes), self.pair_seconds)
            for gear, (a, b) in self.costs.items()
        }
        return GearTable(self.base, curves)

    def seconds(self, gear: Gear, work: Work) -> float:
        fixed, per_token = self.costs[gear]
        pairs = work.prefill_pairs + work.decode_context
        return self.engine[1] + fixed + per_token * work.tokens + pairs * self.pair_seconds + 1e-6 * work.sampled

    def decode_seconds(self, gear: Gear, work: Work, steps: int) -> Sequence[float]:
        n, context = work.decodes, work.decode_context
        return [self.seconds(gear, Work(0, 0, n, context + i * n, work.sampled)) for i in range(steps)]

    def engine_seconds(self, work: Work) -> tuple[float, float]:
        return self.engine

    def tokenize_seconds(self, prompt_tokens: int) -> float:
        return prompt_tokens * self.tokenize
