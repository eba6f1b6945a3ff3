"""`shift-sim replay`: a trace under several layouts, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from shiftcore.layout import LayoutError

from shiftsim import hardware, layouts, models, named_options, replay_page, report, trace
from shiftsim.errors import UserError
from shiftsim.executor import measured
from shiftsim.planning import MAX_BATCHED_TOKENS, MAX_NUM_SEQS, Measured, Modelled, Plan, Settings
from shiftsim.progress import bars
from shiftsim.replay import Outcome, as_json, replay
from shiftsim.trace_options import add_shape, shape

EPILOG = """\
Layouts:
  dp                one engine per GPU, each with a whole model, behind a least-loaded balancer
  tp, sp            one engine over all GPUs in one gear: tensor or sequence parallel
  sp4tp2, ...       one engine in any other gear
  shift             two gears, the tp gear up to --threshold tokens per step and the base gear above
  shift-calibrated  every gear that the base allows, each step in the cheapest for its size

Examples:
  shift-sim replay --trace benchmarks/traces/azure2023_code_15min.csv.gz --model llama-3.3-70b-fp8 --hardware 8xH200
  shift-sim replay --trace day.csv --measured calibration.json --layout tp --layout shift-calibrated
  shift-sim replay --trace day.csv --model ./config.json --hardware 8xH100 --layout dp --layout shift --replicas 4
"""
DESCRIPTION = """\
Plays a trace to the real scheduler, block manager and choice of gears, on a virtual clock. Says who keeps up: who has
finished all within a tenth of the trace's time, or a minute, after the last arrival.
"""


# What only one kind of pods has.
OF_MEASURED = ("--kv-tokens", "--step-ms")
OF_MODELLED = ("--memory-fraction", "--kv-cache", "--weights")


def add(parser: argparse.ArgumentParser) -> None:
    named_options.remember(parser)
    add_argument = parser.add_argument
    add_argument("--trace", type=Path, required=True, metavar="FILE", help="CSV or CSV.GZ: " + ", ".join(trace.COLUMNS))
    add_argument("--model", metavar="NAME|CONFIG.JSON", help="one of " + ", ".join(models.names())
                 + ", with -fp8 behind it for FP8 weights, or a config.json")  # fmt: skip
    add_argument("--hardware", metavar="8xH200", help="GPUs of one replica")
    add_argument("--measured", type=Path, metavar="FILE", help="in place of both: what a running pod measured, "
                 "its calibration file (shift-runtime serve --calibration) or GetState as JSON")  # fmt: skip
    add_argument("--layout", action="append", metavar="LAYOUT", help="may be given more than once (default: "
                 + ", ".join(layouts.NAMES) + ")")  # fmt: skip
    add_argument("--replicas", type=int, default=1, metavar="N", help="pods behind one balancer (default: 1)")
    add_argument("--json", action="store_true", help="one JSON object instead of a table; the same bytes each time")
    add_argument("--html", type=Path, metavar="FILE", help="write a page with plots too, complete in this one file")
    add_engine(parser)
    add_shape(parser)
    parser.epilog, parser.description = EPILOG, DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=run)


def add_engine(parser: argparse.ArgumentParser, *, measured_pods: bool = True) -> None:
    group = parser.add_argument_group("of the engines")
    add, default = group.add_argument, Settings()
    measured = "of a measured pod: what it ran with"
    add("--threshold", type=int, default=layouts.DEFAULT_THRESHOLD_TOKENS, metavar="TOKENS",
        help="of the layout shift: larger steps run the base gear (default: %(default)s)")  # fmt: skip
    add("--base", metavar="GEAR", help="of the layouts that shift, such as sp4tp2 (default: sp over all GPUs)")
    add("--max-num-seqs", type=int, metavar="N",
        help=f"requests that run at once in an engine (default: {MAX_NUM_SEQS}; {measured})")  # fmt: skip
    add("--max-batched-tokens", type=int, metavar="N",
        help=f"tokens per step (default: {MAX_BATCHED_TOKENS}; {measured})")  # fmt: skip
    add("--max-model-len", type=int, metavar="N",
        help=f"tokens of the longest request (default: the model's own; {measured})")  # fmt: skip
    if measured_pods:
        _add_measured(add)
    add("--memory-fraction", type=float, default=default.memory_fraction, metavar="SHARE",
        help="of a GPU's memory that an engine uses (default: %(default)s)")  # fmt: skip
    add("--kv-cache", default="auto", metavar="fp8|bf16", help="numbers of the KV cache (default: bf16)")
    add("--weights", choices=("views", "copies"), default="views",
        help="gears share one copy, as our runtime does, or tp has a second one (default: %(default)s)")  # fmt: skip
    add("--tpot-target-ms", type=float, metavar="MS", help="cut prompts so that a step with decodes ends in this time")
    add("--no-overlap", action="store_true", help="plan a step when the one before has ended, not while it runs")


def _add_measured(add: Callable[..., argparse.Action]) -> None:
    add("--kv-tokens", type=int, metavar="N", help="of a measured pod: tokens that its KV cache holds (default: what "
        "GetState says, else all that its sequences can use)")  # fmt: skip
    add("--step-ms", type=float, default=0.0, metavar="MS", help="of a measured pod: added to each step, planned "
        "ahead or not: what its ranks take in service beyond what they measured (default: 0)")  # fmt: skip


def settings(options: argparse.Namespace) -> Settings:
    """Raises UserError."""
    target = options.tpot_target_ms
    return Settings(
        max_num_seqs=options.max_num_seqs,
        max_batched_tokens=options.max_batched_tokens,
        max_model_len=options.max_model_len,
        memory_fraction=options.memory_fraction,
        copies=options.weights == "copies",
        tpot_target_seconds=None if target is None else target / 1000,
        overlap=not options.no_overlap,
    )


def refuse_idle_gears(options: argparse.Namespace, chosen: Collection[str]) -> None:
    """Raises UserError for an option of gears that none of the layouts takes."""
    played = f"with --layout {' and '.join(chosen)}"
    if "shift" not in chosen:
        named_options.refuse(options, ("--threshold",), f"{played}, which has no threshold", "give --layout shift")
    if not {"shift", "shift-calibrated"} & set(chosen):
        fix = "give --layout shift or shift-calibrated"
        named_options.refuse(options, ("--base",), f"{played}, which does not shift", fix)


def plan(options: argparse.Namespace) -> Plan:
    """Raises UserError."""
    if options.measured is not None:
        if options.model or options.hardware:
            raise UserError("--measured stands in place of --model and --hardware; leave these away")
        named_options.refuse(
            options, OF_MODELLED, "with --measured, whose pod has its memory already",
            "leave it out, or give --kv-tokens",
        )  # fmt: skip
        if not 0 <= options.step_ms < float("inf"):
            raise UserError(f"--step-ms {options.step_ms:g} must be 0 or more milliseconds")
        if options.kv_tokens is not None and options.kv_tokens < 1:
            raise UserError(f"--kv-tokens {options.kv_tokens} must be at least 1")
        return Measured(measured.read(options.measured), settings(options), options.kv_tokens, options.step_ms / 1000)
    if not options.model or not options.hardware:
        raise UserError("name what to replay on: --model and --hardware, or --measured")
    named_options.refuse(
        options, OF_MEASURED, "without --measured", "leave it out, or give --memory-fraction for the cache's size"
    )
    return Modelled(
        models.load(options.model, kv=options.kv_cache), hardware.parse(options.hardware), settings(options)
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Raises UserError."""
    if options.replicas < 1:
        raise UserError(f"--replicas {options.replicas} must be at least 1")
    if options.html:
        report.check_path(options.html)
    outcomes: list[Outcome] = []
    unfit: dict[str, str] = {}  # why, by layout
    for result in _outcomes(options):
        if isinstance(result, Outcome):
            outcomes.append(result)
        else:
            unfit[result[0]] = result[1]
    if not outcomes:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in unfit.items()))
    if options.html:
        report.write(options.html, report.Report(_title(options), _asked(options), outcomes, unfit))
    if options.json:
        print(json.dumps(_json(options, outcomes, unfit), sort_keys=True, indent=1))
    else:
        console.print(replay_page.table(_title(options), outcomes))
        for note in replay_page.notes(outcomes, unfit):
            console.print(note, highlight=False)


def _outcomes(options: argparse.Namespace) -> Iterator[Outcome | tuple[str, str]]:
    """One per layout; a layout that the model does not fit in is named with the reason."""
    played, pods = shape(options), plan(options)
    names = tuple(dict.fromkeys(options.layout or layouts.NAMES))
    chosen = [
        layouts.parse(name, pods.ranks, base=options.base or pods.base, threshold_tokens=options.threshold)
        for name in names
    ]
    refuse_idle_gears(options, names)
    arrivals = sum(1 for _ in trace.read(options.trace, played))  # and so every row has been read once
    if not arrivals:
        raise UserError(f"{options.trace}: no request in this part of the trace; widen --start and --end")
    with bars() as progress:
        for layout in chosen:
            task = progress.add_task(layout.name, total=arrivals)
            try:
                executor, engine = pods.engine(layout)
                yield replay(
                    layout.name, executor, engine, layout.engines * options.replicas, trace.read(options.trace, played),
                    lambda arrived, task=task: progress.update(task, completed=arrived),  # type: ignore[misc]
                )  # fmt: skip
            except (UserError, LayoutError) as error:
                yield layout.name, str(error)


def _title(options: argparse.Namespace) -> str:
    pods = (
        f"{options.measured.name}, measured" if options.measured else f"{options.hardware}, {Path(options.model).name}"
    )
    return f"{options.trace.name} on {options.replicas} × {pods}"


def _asked(options: argparse.Namespace) -> dict[str, object]:
    """The settings, without what came of them."""
    return {
        "trace": {"name": options.trace.name, **{k: v for k, v in asdict(shape(options)).items() if v != float("inf")}},
        "measured": options.measured.name if options.measured else None,
        "model": Path(options.model).name if options.model else None,
        "hardware": options.hardware,
        "replicas": options.replicas,
        "base": options.base,
        "settings": {**asdict(settings(options)), "kv_cache": options.kv_cache, "step_seconds": options.step_ms / 1000},
    }


def _json(options: argparse.Namespace, outcomes: Sequence[Outcome], unfit: dict[str, str]) -> dict[str, object]:
    return {
        **_asked(options),
        "layouts": [as_json(outcome) for outcome in outcomes],
        "do_not_fit": unfit,
    }
