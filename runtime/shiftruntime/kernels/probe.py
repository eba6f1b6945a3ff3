"""Which dtype a device multiplies fastest: machines differ, so measure instead of asking for the name of the ISA."""

from __future__ import annotations

import time

import torch

_SHAPES = ((1, 1024, 4096), (64, 1024, 4096))  # rows, K, N: a decode and a prefill
_REPEATS = 5
_CLEARLY_FASTER = 1.2


def choose_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where it is clearly faster in both shapes, else float32. Takes well under a second."""
    device = torch.device(device)
    if device.type != "cpu":
        return torch.bfloat16
    gains = [_seconds(shape, torch.float32) / _seconds(shape, torch.bfloat16) for shape in _SHAPES]
    return torch.bfloat16 if min(gains) >= _CLEARLY_FASTER else torch.float32


def _seconds(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """Best of a few products x [rows, K] · w [N, K]."""
    rows, K, N = shape
    x, w = torch.ones(rows, K, dtype=dtype), torch.ones(N, K, dtype=dtype)
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    return best
