"""`shift-sim whatif`: a ShiftDeployment and a trace, and the fewest GPUs that meet its targets."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from shiftcore.layout import LayoutError

from shiftsim import deployment, hardware, layouts, models, trace
from shiftsim.deployment import Resource
from shiftsim.errors import UserError
from shiftsim.layouts import Layout
from shiftsim.planning import (
    POD_KV_MEMORY_PERCENT,
    POD_MAX_BATCHED_TOKENS,
    POD_MAX_NUM_SEQS,
    Settings,
    modelled,
)
from shiftsim.progress import bars
from shiftsim.trace_options import add_shape, shape
from shiftsim.whatif import Answer, Demand, smallest

DESCRIPTION = """\
Finds the fewest replicas of a ShiftDeployment that meet spec.slo at its percentile over a whole trace, and what they
cost in GPU-hours: GPUs times the time from the first arrival to the last.

  shift   pods as the resource asks for them: spec.parallelism, spec.shift, spec.engine
  tp      the same pods, pinned in the tp gear
  dp      engines of one GPU each, bought one GPU at a time, which no pod of several GPUs can be

"below" is why one replica less is not enough: the target that is missed first, or that the model does not fit.
The size does not change during the trace: for that see shift-sim autoscale. A resource with schedules is refused,
since a trace has no clock on the wall; what else is set and not simulated is named below the table. What spec.engine
does not say is as a pod has it: 64 requests at once, steps of 2,048 tokens, 80 % of free memory for the cache.
"""
EPILOG = """\
Example:
  shift-sim whatif llama.yaml --trace benchmarks/traces/azure2023_code_15min.csv.gz --hardware 8xH200
"""


@dataclass(frozen=True)
class _Row:
    layout: str
    gpus_per_engine: float
    answer: Answer | None
    unfit: str = ""

    @property
    def gpus(self) -> float:
        assert self.answer is not None
        assert self.answer.smallest is not None, f"{self.layout} has no size that is enough"
        return self.answer.smallest.engines * self.gpus_per_engine

    @property
    def enough(self) -> bool:
        return self.answer is not None and self.answer.smallest is not None


def add(parser: argparse.ArgumentParser) -> None:
    add_argument = parser.add_argument
    add_argument("resource", type=Path, metavar="FILE.YAML", help="with one ShiftDeployment")
    add_argument("--trace", type=Path, required=True, metavar="FILE", help="CSV or CSV.GZ: " + ", ".join(trace.COLUMNS))
    add_argument("--hardware", required=True, metavar="8xH200", help="GPUs of one pod: spec.parallelism.gpus of them")
    add_argument("--model", metavar="NAME|CONFIG.JSON", help="where spec.model does not tell its shape")
    add_argument("--most", type=int, default=16, metavar="PODS", help="to try (default: %(default)s)")
    add_argument("--kv-cache", default="auto", metavar="fp8|bf16", help="numbers of the KV cache (default: bf16)")
    add_argument("--json", action="store_true", help="one JSON object instead of a table; the same bytes each time")
    add_shape(parser)
    parser.epilog, parser.description = EPILOG, DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=run)


def run(options: argparse.Namespace, console: Console) -> None:
    """Raises UserError."""
    asked = deployment.read(options.resource, options.model)
    gpus = hardware.parse(options.hardware)
    if gpus.num_gpus != asked.gpus:
        raise UserError(
            f"--hardware {options.hardware} has {gpus.num_gpus} GPUs, spec.parallelism.gpus is {asked.gpus}; "
            "make both equal"
        )
    if options.most < 1:
        raise UserError(f"--most {options.most} must be at least 1")
    demand = Demand.of(trace.read(options.trace, shape(options)))
    if not demand.requests:
        raise UserError(f"{options.trace}: no request in this part of the trace; widen --start and --end")
    with bars() as progress:
        rows = [
            _row(options, asked, layout, progress, progress.add_task(layout.name, total=None))
            for layout in _layouts(asked)
        ]
    if options.json:
        print(json.dumps(_json(options, asked, demand, rows), sort_keys=True, indent=1))
    else:
        console.print(_table(options, asked, demand, rows))
        for note in asked.notes:
            console.print(note, highlight=False)


def _layouts(asked: Resource) -> tuple[Layout, ...]:
    shift = Layout("shift", asked.base, None, asked.policy)
    return shift, layouts.parse("tp", asked.gpus), layouts.parse("dp", asked.gpus)


def _row(options: argparse.Namespace, asked: Resource, layout: Layout, progress: Progress, task: TaskID) -> _Row:
    model, gpus = models.load(asked.model, kv=options.kv_cache), hardware.parse(options.hardware)
    each = asked.gpus / layout.engines
    common = Settings(
        max_num_seqs=asked.engine.get("maxNumSeqs", POD_MAX_NUM_SEQS),
        max_batched_tokens=asked.engine.get("maxBatchedTokens", POD_MAX_BATCHED_TOKENS),
        max_model_len=asked.engine.get("maxModelLen"),
        kv_memory_percent=asked.engine.get("gpuMemoryPercent", POD_KV_MEMORY_PERCENT),
    )
    try:
        executor = modelled(model, gpus, layout, common)
        answer = smallest(
            executor, common.options(layout, model.max_model_len), asked.slo,
            lambda: trace.read(options.trace, shape(options)), options.most * layout.engines,
            tried=lambda engines: progress.update(task, description=f"{layout.name}: {engines * each:g} GPUs"),
        )  # fmt: skip
    except (UserError, LayoutError) as error:
        return _Row(layout.name, each, None, str(error))
    return _Row(layout.name, each, answer)


def _table(options: argparse.Namespace, asked: Resource, demand: Demand, rows: list[_Row]) -> Table:
    slo = asked.slo
    targets = (("TTFT", slo.ttft_seconds), ("TPOT", slo.tpot_seconds))
    named = ", ".join(f"{name} {value * 1000:g} ms" for name, value in targets if value is not None)
    page = Table(title=f"{asked.name} · {asked.model} · {options.trace.name} · p{slo.percentile} {named}")
    for heading in ("", "GPUs", "GPU-hours", f"TTFT p{slo.percentile}", f"TPOT p{slo.percentile}", "below"):
        page.add_column(heading, justify="right" if heading and heading != "below" else "left")
    for row in rows:
        page.add_row(row.layout, *_cells(row, demand))
    return page


def _cells(row: _Row, demand: Demand) -> tuple[str, ...]:
    if row.answer is None or row.answer.smallest is None:
        return "none", "–", "–", "–", _binds(row)
    found = row.answer.smallest
    return (
        f"{row.gpus:g}",
        f"{row.gpus * demand.seconds / 3600:,.2f}",
        f"{found.ttft_seconds * 1000:,.0f} ms",
        f"{found.tpot_seconds * 1000:,.1f} ms",
        _binds(row),
    )


def _binds(row: _Row) -> str:
    if row.answer is None:
        return row.unfit
    below = row.answer.below
    if below is None:
        return "one engine is enough"
    reason = below.refusal or f"{below.missed} is missed"
    return f"{reason} with {below.engines * row.gpus_per_engine:g} GPUs"


def _json(options: argparse.Namespace, asked: Resource, demand: Demand, rows: list[_Row]) -> dict[str, Any]:
    return {
        "resource": asked.name,
        "model": asked.model,
        "hardware": options.hardware,
        "trace": {"name": options.trace.name, "requests": demand.requests, "seconds": demand.seconds},
        "slo": {
            "ttft_seconds": asked.slo.ttft_seconds,
            "tpot_seconds": asked.slo.tpot_seconds,
            "percentile": asked.slo.percentile,
        },
        "layouts": [_row_json(row, demand) for row in rows],
        "notes": asked.notes,
    }


def _row_json(row: _Row, demand: Demand) -> dict[str, Any]:
    common = {"layout": row.layout, "gpus_per_engine": row.gpus_per_engine, "binding": _binds(row)}
    if row.answer is None or row.answer.smallest is None:
        return {**common, "gpus": None, "gpu_hours": None}
    found = row.answer.smallest
    return {
        **common,
        "gpus": row.gpus,
        "gpu_hours": row.gpus * demand.seconds / 3600,
        "ttft_seconds": found.ttft_seconds,
        "tpot_seconds": found.tpot_seconds,
    }
