"""An executor from what a running pod measured of itself: its calibration file, or the answer of GetState as JSON.

The pod's points have costs of context in them: small steps were decodes behind 64 tokens each, large ones prompts from
their beginning. What context adds was measured with decodes, where every row reads its own; a chunk of a prompt reads
the context before it once for all its rows, and is charged as one decode is. An answer of GetState does not tell what
context costs; take the calibration file where contexts are long. Of the cache's size it is the other way round: only
GetState has it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from shiftcore.costs import CostCurve, CostPoint
from shiftcore.gears import GearTable
from shiftcore.layout import Gear, LayoutError

from shiftsim.errors import UserError
from shiftsim.work import BLOCK_SIZE, CALIBRATION_CONTEXT_TOKENS, Work

_MAX_BYTES = 1 << 22


@dataclass(frozen=True)
class Measurement:
    """``costs`` by gear as measured; the limits under which they were, and the cache's size, where the file has them.

    ``kv_tokens`` is of layers that all keep whole contexts; where some keep windows, blocks are shared among the kinds.
    """

    base: Gear
    costs: Mapping[Gear, CostCurve]
    max_num_seqs: int | None = None
    max_batched_tokens: int | None = None
    max_model_len: int | None = None
    kv_tokens: int | None = None


@dataclass(frozen=True)
class MeasuredExecutor:
    """``step_seconds`` is added to every step, also to one that was planned ahead: what the ranks take in service
    beyond what they measured at their start. ``kv_assumed``: nobody measured how much the cache holds."""

    measurement: Measurement
    kv_tokens: int
    max_num_seqs: int  # that the costs were measured with
    max_model_len: int
    step_seconds: float = 0.0
    kv_assumed: bool = False
    _known: dict[tuple[Gear, int], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def table(self) -> GearTable:
        return GearTable(self.measurement.base, self.measurement.costs)

    def seconds(self, gear: Gear, work: Work) -> float:
        """Of one step."""
        read = work.decode_context + work.prefill_context
        return self._measured(gear, work.tokens) + self._context_seconds(gear) * read

    def decode_seconds(self, gear: Gear, work: Work, steps: int) -> Sequence[float]:
        """Of so many steps in a row in which the same requests decode."""
        rows, each, first = self._measured(gear, work.decodes), self._context_seconds(gear), work.decode_context
        return [rows + each * context for context in range(first, first + steps * work.decodes, work.decodes)]

    def engine_seconds(self, work: Work) -> tuple[float, float]:
        """Nothing: a pod measures the steps of its ranks alone, so that planning ahead hides none of their time."""
        return 0.0, 0.0

    def tokenize_seconds(self, prompt_tokens: int) -> float:
        """Not measured; small beside a step of a CPU."""
        return 0.0

    def _context_seconds(self, gear: Gear) -> float:
        return self.measurement.costs[gear].pair_seconds

    def _measured(self, gear: Gear, tokens: int) -> float:
        """Without the context that was measured along with decodes."""
        key = gear, tokens
        if key not in self._known:
            context = min(CALIBRATION_CONTEXT_TOKENS, self.max_model_len - 1)
            along = self._context_seconds(gear) * tokens * context if tokens <= self.max_num_seqs else 0.0
            self._known[key] = max(0.0, _between(self.measurement.costs[gear].points, tokens) - along)
            self._known[key] += self.step_seconds
        return self._known[key]


def _between(points: Sequence[CostPoint], tokens: int) -> float:
    """Linear between the medians, as they were measured: unlike the choice of gears, a forecast wants no caution, and
    some kernels do take less for more rows. Beyond the last point in proportion."""
    if len(points) == 1 or tokens <= points[0].tokens:
        return points[0].median_seconds
    if tokens >= points[-1].tokens:
        return points[-1].median_seconds * tokens / points[-1].tokens
    right = bisect_right([point.tokens for point in points], tokens)
    low, high = points[right - 1], points[right]
    slope = (high.median_seconds - low.median_seconds) / (high.tokens - low.tokens)
    return low.median_seconds + slope * (tokens - low.tokens)


def read(path: Path) -> Measurement:
    """A calibration file of the runtime, or GetState as JSON; raises UserError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is larger than {_MAX_BYTES >> 20} MiB, which no measurement of a pod is")
        content = json.loads(path.read_text())
        return _from_state(content) if isinstance(content["gears"], list) else _from_file(content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, LayoutError) as error:
        raise UserError(
            f"{path} is neither a calibration file (shift-runtime serve --calibration) nor an answer of GetState: "
            f"{type(error).__name__} {error}"
        ) from error


def _from_file(content: dict[str, Any]) -> Measurement:
    measured_with = content["provenance"]
    costs = {
        Gear.parse(name): CostCurve(_points(curve["points"]), float(curve.get("pair_seconds", 0.0)))
        for name, curve in content["gears"].items()
    }
    return Measurement(
        _base(measured_with["base_gear"], costs), costs,
        max_num_seqs=int(measured_with["max_num_seqs"]),
        max_batched_tokens=int(measured_with["max_batched_tokens"]),
        max_model_len=int(measured_with["max_model_len"]),
    )  # fmt: skip


def _from_state(content: dict[str, Any]) -> Measurement:
    """Names as in the .proto or in its JSON mapping, numbers of 64 bits also as text."""
    gears = [{_snake(key): value for key, value in gear.items()} for gear in content["gears"]]
    costs = {Gear.parse(gear["name"]): CostCurve(_points(gear["costs"])) for gear in gears if gear.get("costs")}
    whole = {_snake(key): value for key, value in content.items()}
    load = {_snake(key): value for key, value in whole.get("load", {}).items()}
    seqs, blocks = (int(load.get(name, 0)) for name in ("max_running_requests", "kv_blocks_total"))
    return Measurement(
        _base(whole["base_gear"], costs), costs, max_num_seqs=seqs or None, kv_tokens=blocks * BLOCK_SIZE or None
    )


def _base(name: str, costs: Mapping[Gear, CostCurve]) -> Gear:
    base = Gear.parse(name)
    if base not in costs:
        raise UserError(f"the base gear {base} was not measured; start the pod without --no-calibration")
    return base


def _points(points: Sequence[Mapping[str, Any]]) -> tuple[CostPoint, ...]:
    plain = ({_snake(key): value for key, value in point.items()} for point in points)
    found = tuple(
        CostPoint(int(p["tokens"]), float(p["median_seconds"]), float(p.get("spread_seconds", 0.0)), int(p["samples"]))
        for p in plain
    )
    if any(not 0 < point.median_seconds < inf or point.samples < 1 for point in found):
        raise UserError("a step was measured with no time or no sample; let the pod calibrate itself anew")
    return found


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
