"""`shift-sim autoscale`: the operator's autoscaler on a trace, with shift before scale, without it, without shift."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from shiftcore.layout import LayoutError
from shiftcore.scaling import Limits

from shiftsim import autoscale_page, hardware, layouts, models, named_options, trace
from shiftsim.autoscale import ScaledFleet, Service
from shiftsim.errors import UserError
from shiftsim.planning import modelled
from shiftsim.pods import Start
from shiftsim.progress import bars
from shiftsim.replay_command import add_engine, refuse_idle_gears, settings
from shiftsim.slo_options import add_slo, numbers, slo
from shiftsim.trace_options import add_shape, shape

DESCRIPTION = """\
Plays a trace to pods that the operator's autoscaler adds and takes away, three times.

  with shift     pods that shift gears (--layout); capacity is that of the base gear, and a high utilisation adds a pod
                 only once the pods run that gear (the gate: shift before scale)
  no gate        the same pods; a high utilisation adds a pod whatever gear they run. Against "with shift" this is what
                 shift before scale does, and nothing else
  without shift  a native tensor-parallel service, with the same rules, windows and targets on its gear's capacity. Its
                 ranks share the weights, so that its KV cache is larger than that of pods with a wide base

Every pod takes the start-up time before it serves, and holds its GPUs from when it has a node until it is gone. A
request meets the targets when both its TTFT and its TPOT do; who is refused, or cut off when a drain takes too long,
does not. Traffic begins with --min pods ready. Nothing fails here: nodes are there when they are asked for.
"""
EPILOG = """\
Example:
  shift-sim autoscale --trace benchmarks/traces/azure2023_code_15min.csv.gz --model llama-3.3-70b-fp8 \\
      --hardware 8xH200 --min 1 --max 6 --ttft-ms 2000 --tpot-ms 100
"""


TENSOR_PARALLEL = "tp"


class Run(NamedTuple):
    """``may_shift``: whether the autoscaler lets the pods shift before it adds one for a high utilisation."""

    name: str
    layout: str
    may_shift: bool


def add(parser: argparse.ArgumentParser) -> None:
    named_options.remember(parser)
    add_argument = parser.add_argument
    add_argument("--trace", type=Path, required=True, metavar="FILE", help="CSV or CSV.GZ: " + ", ".join(trace.COLUMNS))
    add_argument("--model", required=True, metavar="NAME|CONFIG.JSON", help="as of shift-sim replay")
    add_argument("--hardware", required=True, metavar="8xH200", help="GPUs of one pod")
    add_argument("--layout", default="shift-calibrated", help="of the pods that shift (default: %(default)s, as the "
                 "policy Auto does; or shift)", choices=("shift", "shift-calibrated"))  # fmt: skip
    add_argument("--json", action="store_true", help="one JSON object instead of a table; the same bytes each time")
    group = parser.add_argument_group("of the autoscaler, as in spec.autoscaling")
    add_argument = group.add_argument
    add_argument("--min", type=int, default=1, metavar="PODS", help="(default: 1)")
    add_argument("--max", type=int, required=True, metavar="PODS")
    add_argument("--windows", default="30,300", metavar="OUT,IN",
                 help="seconds for which a reason must hold (default: %(default)s)")  # fmt: skip
    add_argument("--start-up", default="10,90,20", metavar="NODE,LOAD,WARM",
                 help="seconds until a new pod has a node, has its weights, serves (default: %(default)s)")  # fmt: skip
    add_argument("--drain", type=float, default=300.0, metavar="SECONDS",
                 help="after which a leaving pod is cut off (default: %(default)g)")  # fmt: skip
    add_slo(parser)
    add_engine(parser, measured_pods=False)
    add_shape(parser)
    parser.epilog, parser.description = EPILOG, DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=run)


def run(options: argparse.Namespace, console: Console) -> None:
    """Raises UserError."""
    gpus = hardware.parse(options.hardware).num_gpus
    if not 0 <= options.drain < float("inf"):
        raise UserError(f"--drain {options.drain:g} must be 0 or more seconds")
    if not 1 <= options.min <= options.max:
        raise UserError(f"--min {options.min} must lie in 1..--max {options.max}")
    refuse_idle_gears(options, (options.layout,))
    arrivals = sum(1 for _ in trace.read(options.trace, shape(options)))
    if not arrivals:
        raise UserError(f"{options.trace}: no request in this part of the trace; widen --start and --end")
    fleets: dict[str, ScaledFleet] = {}
    with bars() as progress:
        for asked in runs(options.layout):
            task = progress.add_task(asked.name, total=arrivals)
            fleet = _fleet(options, asked.layout, service(options, gpus, may_shift=asked.may_shift))
            fleets[asked.name] = fleet
            fleet.replay(
                trace.read(options.trace, shape(options)),
                lambda arrived, task=task: progress.update(task, completed=arrived),  # type: ignore[misc]
            )
    if options.json:
        print(json.dumps(_json(options, fleets), sort_keys=True, indent=1))
    else:
        title = (
            f"{options.trace.name} · {Path(options.model).name} · {options.min} to {options.max} × {options.hardware}"
        )
        console.print(autoscale_page.table(title, fleets))
        for note in autoscale_page.notes(fleets):
            console.print(note, highlight=False)


def runs(layout: str) -> tuple[Run, ...]:
    """Each differs from the one before in one thing: the gate, then the pods."""
    return (
        Run("with shift", layout, may_shift=True),
        Run("no gate", layout, may_shift=False),
        Run("without shift", TENSOR_PARALLEL, may_shift=False),
    )


def service(options: argparse.Namespace, gpus: int, *, may_shift: bool) -> Service:
    """Raises UserError."""
    targets = slo(options)
    out, into = numbers(options.windows, "--windows", "OUT,IN")
    limits = Limits(
        minimum=options.min,
        maximum=options.max,
        gpus_per_pod=gpus,
        out_seconds=out,
        in_seconds=into,
        ttft_seconds=targets.ttft_seconds,
        tpot_seconds=targets.tpot_seconds,
        may_shift=may_shift,
    )
    return Service(limits, targets, Start(*numbers(options.start_up, "--start-up", "NODE,LOAD,WARM")), options.drain)


def _fleet(options: argparse.Namespace, name: str, service: Service) -> ScaledFleet:
    model, gpus, common = (
        models.load(options.model, kv=options.kv_cache),
        hardware.parse(options.hardware),
        settings(options),
    )
    layout = layouts.parse(name, gpus.num_gpus, base=options.base if name != TENSOR_PARALLEL else None,
                           threshold_tokens=options.threshold)  # fmt: skip
    try:
        executor = modelled(model, gpus, layout, common)
    except LayoutError as error:
        raise UserError(str(error)) from error
    return ScaledFleet(executor, common.options(layout, model.max_model_len), service)


def _json(options: argparse.Namespace, fleets: dict[str, ScaledFleet]) -> dict[str, object]:
    some = next(iter(fleets.values())).service
    limits = {k: v for k, v in asdict(some.limits).items() if k != "may_shift"}
    return {
        "trace": {"name": options.trace.name, **{k: v for k, v in asdict(shape(options)).items() if v != float("inf")}},
        "model": Path(options.model).name,
        "hardware": options.hardware,
        "layout": options.layout,
        "settings": {**asdict(settings(options)), "kv_cache": options.kv_cache},
        "limits": limits,
        "slo": asdict(some.slo),
        "start": asdict(some.start),
        "drain_seconds": some.drain_seconds,
        "runs": {name: autoscale_page.as_json(fleet) for name, fleet in fleets.items()},
    }
