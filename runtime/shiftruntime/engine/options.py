"""What one engine is started with: the command line after it has been checked."""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.layout import Gear
from shiftcore.policy import Policy

INITIAL_POLICY = Policy()


@dataclass(frozen=True)
class EngineOptions:
    model: str  # path of a GGUF file or of a folder with config.json and safetensors
    ranks: int
    base_gear: Gear
    dtype: str = "auto"
    exact: bool = False
    quantisation: str = "auto"  # refuse a model whose weights are stored otherwise
    require_manifest: bool = False  # refuse a model without a manifest; one that is there is always verified
    policy: Policy = INITIAL_POLICY
    max_num_seqs: int = 64
    max_batched_tokens: int = 2048
    max_model_len: int | None = None  # None: the model's own length, at most 8192 on CPU
    max_waiting_requests: int = 256
    kv_memory_bytes: int | None = None  # per rank; None: from what is free
    kv_memory_percent: int = 80  # of what is free beside weights and steps; the rest is for the other processes
    kv_cache_dtype: str = "auto"  # as the model is computed
    block_size: int = 16
    prefix_cache: bool = True
    overlap: bool = True  # schedule a step while the ranks run the one before
    calibrate: bool = True
    calibration_file: str | None = None  # costs are kept there and read back while they hold
    tpot_target_seconds: float | None = None  # prefill chunks are cut so that a mixed step ends in time
    startup_timeout_seconds: float = 600.0
    step_timeout_seconds: float = 10.0  # a progress counter standing still this long fails the group
