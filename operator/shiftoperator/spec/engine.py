"""`spec.engine`: limits of what a pod runs at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Engine:
    max_num_seqs: int | None = None
    max_batched_tokens: int | None = None
    max_model_len: int | None = None


def engine(asked: dict[str, Any]) -> Engine:
    return Engine(asked.get("maxNumSeqs"), asked.get("maxBatchedTokens"), asked.get("maxModelLen"))
