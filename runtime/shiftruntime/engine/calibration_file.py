"""Measured costs of the gears as a JSON file: kept from start to start, and read by people and by the simulator.

A file holds for one model on one kind of machine only. What it was measured with stands in it, and every difference
means to measure anew.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import msgspec
from shiftcore.costs import CostCurve
from shiftcore.layout import Gear

from shiftruntime.config import ModelConfig
from shiftruntime.engine.cgroups import Cgroups
from shiftruntime.engine.options import EngineOptions

log = logging.getLogger(__name__)

_FORMAT = 1
_MAX_BYTES = 1 << 20
# What decides which kernels torch takes on this processor.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

Costs = Mapping[Gear, CostCurve]


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a cost depends on, as far as this process can know it."""

    model: str  # digest of its configuration
    dtype: str
    exact: bool
    ranks: int
    base_gear: str
    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    block_size: int
    device: str
    processor: str
    instruction_sets: tuple[str, ...]
    cores: int  # that this process may keep busy
    torch: str
    runtime: str
    kv_cache_dtype: str = "auto"

    @staticmethod
    def of(options: EngineOptions, config: ModelConfig, dtype: str, max_model_len: int) -> Provenance:
        processor, flags = _processor()
        return Provenance(
            model=hashlib.sha256(msgspec.json.encode(config)).hexdigest()[:16],
            dtype=dtype,
            exact=options.exact,
            ranks=options.ranks,
            base_gear=options.base_gear.name,
            max_num_seqs=options.max_num_seqs,
            max_batched_tokens=options.max_batched_tokens,
            max_model_len=max_model_len,
            block_size=options.block_size,
            device="cpu",
            processor=processor,
            instruction_sets=tuple(name for name in _INSTRUCTION_SETS if name in flags),
            cores=Cgroups().cores(),
            torch=version("torch"),
            runtime=version("shift-runtime"),
            kv_cache_dtype=options.kv_cache_dtype,
        )

    def differences(self, other: Provenance) -> list[str]:
        """What differs, as ``field: ours, not theirs``."""
        names = [name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)]
        return [f"{name}: {getattr(self, name)}, not {getattr(other, name)}" for name in names]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    provenance: Provenance
    gears: dict[str, CostCurve]


def read(path: Path, wanted: Provenance, gears: tuple[Gear, ...]) -> Costs | None:
    """The costs in the file; None, with a line in the log, when it is not there or was measured with something else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            log.warning("%s: larger than %d bytes, not read; measuring", path, _MAX_BYTES)
            return None
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # a decoding error of msgspec is a ValueError
        log.warning("%s: %s; measuring", path, error)
        return None
    different = wanted.differences(found.provenance)
    if found.format != _FORMAT:
        different.append(f"format: {_FORMAT}, not {found.format}")
    if set(found.gears) != {gear.name for gear in gears}:
        different.append(f"gears: {', '.join(gear.name for gear in gears)}, not {', '.join(found.gears)}")
    if different:
        log.info("%s was measured with something else (%s); measuring", path, "; ".join(different))
        return None
    return {gear: found.gears[gear.name] for gear in gears}


def write(path: Path, provenance: Provenance, costs: Costs) -> None:
    """Replace the file as a whole; a folder that cannot be written only costs the next start its time."""
    content = _File(_FORMAT, provenance, {gear.name: curve for gear, curve in costs.items()})
    # Pods that share a volume have the same process ids.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
        partial.replace(path)
    except OSError as error:
        log.warning("cannot keep the calibration in %s: %s", path, error)
        partial.unlink(missing_ok=True)


def _processor() -> tuple[str, frozenset[str]]:
    """Name and flags of the first processor; the machine's architecture where the kernel does not say."""
    values: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            values[key.strip()] = value.strip()
    except OSError:
        pass
    return values.get("model name", platform.machine()), frozenset(values.get("flags", "").split())
