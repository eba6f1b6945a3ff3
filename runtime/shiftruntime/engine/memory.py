"""How much memory this process group may still use, and how many KV blocks fit in it."""

from __future__ import annotations

from pathlib import Path

from shiftcore.block_tables import BlockTables, peak_blocks
from shiftcore.blocks import BlockPool
from shiftprotos import contract

from shiftruntime.engine.cgroups import Cgroups
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.self_check import SELF_CHECK_TOKENS
from shiftruntime.errors import StartupError

_MIB = 1 << 20


def available_bytes() -> int:
    """The smaller of the machine's available memory and what is left under the cgroups' limits."""
    free, left = _meminfo("MemAvailable"), Cgroups().memory_left_bytes()
    return max(0, free if left is None else min(free, left))


def reset_peak(pid: int) -> None:
    """Begin to watch the largest resident size of a process anew, where the kernel lets us."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return  # the peak since its start is then what it shows, which errs towards a smaller cache


def peak_bytes(pid: int) -> int:
    """The largest resident size of a process since it is watched; 0 when it is gone."""
    return _status_bytes(pid, "VmHWM")


def resident_bytes(pid: int) -> int:
    """The resident size of a process, memory that it shares included; 0 when it is gone."""
    return _status_bytes(pid, "VmRSS")


def _status_bytes(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def limit_mib() -> str:
    """The memory limit of this process, for people."""
    limit = Cgroups().memory_limit_bytes()
    return "the machine's memory" if limit is None else f"{limit // _MIB} MiB"


def check_weights_fit(weights_bytes: int) -> None:
    """Raises StartupError(OutOfMemory) before anything is loaded."""
    free = available_bytes()
    if weights_bytes > free:
        raise StartupError(
            contract.REASON_OUT_OF_MEMORY,
            f"the weights need {weights_bytes // _MIB} MiB and {free // _MIB} MiB are free; "
            "raise the memory limit or choose a smaller dtype",
        )


def kv_blocks(
    options: EngineOptions, max_model_len: int, block_bytes: int, free_bytes: int, windows: tuple[int | None, ...]
) -> int:
    """Blocks per rank: what the memory holds, at most what the limits can use. ``windows``: per layer group.

    Raises StartupError(OutOfMemory) if not even one sequence of maximal length fits.
    """
    chunk_tokens = max(options.max_batched_tokens, SELF_CHECK_TOKENS)
    per_sequence = peak_blocks(windows, options.block_size, max_model_len, chunk_tokens)
    budget = options.kv_memory_bytes
    if budget is None:
        budget = free_bytes * options.kv_memory_percent // 100 // options.ranks
    fitting = budget // block_bytes
    if fitting < per_sequence:
        tokens = _longest(fitting, options, max_model_len, windows)
        raise StartupError(
            contract.REASON_OUT_OF_MEMORY,
            f"the KV cache gets {budget // _MIB} MiB per rank, which holds {tokens} tokens, less "
            f"than one sequence of {max_model_len}; raise the memory limit or lower --max-model-len",
        )
    return min(fitting, per_sequence * options.max_num_seqs)


def _longest(num_blocks: int, options: EngineOptions, max_model_len: int, windows: tuple[int | None, ...]) -> int:
    if not num_blocks:
        return 0
    pool = BlockPool(num_blocks, options.block_size)
    tables = BlockTables(pool, windows, prefix_cache=False, max_chunk_tokens=options.max_batched_tokens)
    return tables.longest(max_model_len)


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) * 1024
    raise StartupError(contract.REASON_INTERNAL, f"/proc/meminfo has no {key}")
