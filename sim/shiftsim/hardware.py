"""Hardware facts, from data/hardware.toml, each with its source there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from shiftsim.errors import UserError

MOST_GPUS = 8  # of one machine
_NAME = re.compile(r"([1-9]\d*)x(\w+)")


@dataclass(frozen=True)
class Gpu:
    """Peaks of one GPU, dense arithmetic."""

    name: str
    fp8_flops: float  # per second, as the next
    bf16_flops: float
    memory_bytes_per_second: float
    memory_bytes: float  # as CUDA reports it
    link_bytes_per_second: float  # to all others together, one way
    multiprocessors: int


@dataclass(frozen=True)
class Software:
    """What libraries make of the peaks: shares of 1, and latencies. The same for every model and layout."""

    memory_of_peak: float
    tile: int  # rows and columns of a matrix product that one multiprocessor computes at once
    attention_of_peak: float
    all_reduce_seconds: float  # of a message of a few KB
    all_to_all_of_link: float
    tokenize_seconds_per_token: float
    engine_seconds: float  # of the engine's process, of every step
    engine_seconds_per_sequence: float  # and for each sequence in it
    overhead_bytes: float  # per GPU


@dataclass(frozen=True)
class Hardware:
    """One pod's GPUs."""

    gpu: Gpu
    num_gpus: int


@cache
def software() -> Software:
    return Software(**_table()["software"])


def parse(text: str) -> Hardware:
    """Read ``8xH200``; raises UserError."""
    match, gpus = _NAME.fullmatch(text), _table()["gpu"]
    if match is None or match[2] not in gpus:
        raise UserError(f"hardware {text!r} is unknown; write NUMBERxGPU with one of {', '.join(sorted(gpus))}")
    if int(match[1]) > MOST_GPUS:
        raise UserError(f"hardware {text!r}: a pod's GPUs share one NVLink switch, at most {MOST_GPUS}; use --replicas")
    return Hardware(Gpu(**gpus[match[2]]), int(match[1]))


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("shiftsim").joinpath("data/hardware.toml").read_text())
