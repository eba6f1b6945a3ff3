"""`spec.engine`: limits of what a pod runs at once, and of what it keeps of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shiftprotos import contract

from shiftoperator.errors import InvalidSpecError

KV_CACHE_DTYPES = ("auto", "bfloat16")


@dataclass(frozen=True)
class Engine:
    max_num_seqs: int | None = None
    max_batched_tokens: int | None = None
    max_model_len: int | None = None
    # Share of the memory that weights and steps leave free, for the KV cache.
    gpu_memory_percent: int | None = None
    prefix_caching: bool = True
    kv_cache_dtype: str | None = None


def engine(asked: dict[str, Any]) -> Engine:
    percent, dtype = asked.get("gpuMemoryPercent"), asked.get("kvCacheDtype")
    lowest, highest = contract.MIN_KV_MEMORY_PERCENT, contract.MAX_KV_MEMORY_PERCENT
    if percent is not None and not lowest <= percent <= highest:
        raise InvalidSpecError(f"engine.gpuMemoryPercent {percent} must lie in {lowest}..{highest}")
    if dtype is not None and dtype not in KV_CACHE_DTYPES:
        raise InvalidSpecError(f"engine.kvCacheDtype {dtype!r} is unknown; use {', '.join(KV_CACHE_DTYPES)}")
    return Engine(
        asked.get("maxNumSeqs"),
        asked.get("maxBatchedTokens"),
        asked.get("maxModelLen"),
        percent,
        asked.get("prefixCaching", True),
        dtype,
    )
