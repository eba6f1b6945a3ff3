"""How much memory this process group may still use, and how many KV blocks fit in it."""

from __future__ import annotations

from pathlib import Path

from shiftcore.block_tables import BlockTables, peak_blocks
from shiftcore.blocks import BlockPool
from shiftprotos import contract

from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.self_check import SELF_CHECK_TOKENS
from shiftruntime.errors import StartupError

_KV_SHARE = 0.8  # of what is free beside weights and activations; the rest is for the processes around the ranks
_UNLIMITED = 1 << 60  # cgroup v1 reports "no limit" as a number near 2**63
_MIB = 1 << 20


def available_bytes() -> int:
    """The smaller of the machine's available memory and what is left under the cgroup's limit."""
    free = _meminfo("MemAvailable")
    for limit_path, usage_path, stat_path in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        root = Path("/sys/fs/cgroup")
        limit = _number(root / limit_path)
        usage = _number(root / usage_path)
        if limit is not None and usage is not None and limit < _UNLIMITED:
            # Page cache counts as usage but is given back under pressure.
            free = min(free, limit - usage + _stat(root / stat_path, "inactive_file"))
    return max(0, free)


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


def oom_kills() -> int:
    """Processes of this cgroup that the kernel has killed for lack of memory so far."""
    root = Path("/sys/fs/cgroup")
    return max(_stat(root / "memory.events", "oom_kill"), _stat(root / "memory/memory.oom_control", "oom_kill"))


def limit_mib() -> str:
    """The memory limit of this cgroup, for people."""
    root = Path("/sys/fs/cgroup")
    limits = [_number(root / "memory.max"), _number(root / "memory/memory.limit_in_bytes")]
    known = [limit for limit in limits if limit is not None and limit < _UNLIMITED]
    return f"{min(known) // _MIB} MiB" if known else "the machine's memory"


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
        budget = int(free_bytes * _KV_SHARE) // options.ranks
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


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == key), 0)
