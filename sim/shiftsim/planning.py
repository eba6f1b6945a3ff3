"""From what a user names (model, hardware, layout, settings) to the executor and the options of one engine."""

from __future__ import annotations

from dataclasses import dataclass

from shiftsim import hardware, models
from shiftsim.engine import EngineOptions
from shiftsim.errors import UserError
from shiftsim.executor import memory
from shiftsim.executor.fitted import Fitted, published_fit
from shiftsim.executor.modelled import ModelledExecutor
from shiftsim.layouts import Layout


@dataclass(frozen=True)
class Settings:
    """Of every engine, whatever its layout; None: the model's own length."""

    max_num_seqs: int = 1024
    max_batched_tokens: int = 8192
    max_model_len: int | None = None
    memory_fraction: float = 0.90
    copies: bool = False  # a second copy of the weights for the tp gear, as the published implementation holds
    tpot_target_seconds: float | None = None
    overlap: bool = True

    def __post_init__(self) -> None:
        counts = {"--max-num-seqs": self.max_num_seqs, "--max-batched-tokens": self.max_batched_tokens}
        if self.max_model_len is not None:
            counts["--max-model-len"] = self.max_model_len
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} {value} must be at least 1")
        if not 0 < self.memory_fraction <= 1:
            raise UserError(f"--memory-fraction {self.memory_fraction:g} must be above 0 and at most 1")
        if self.tpot_target_seconds is not None and not self.tpot_target_seconds > 0:
            raise UserError(f"--tpot-target-ms {self.tpot_target_seconds * 1000:g} must be above 0")

    def options(self, layout: Layout, max_model_len: int) -> EngineOptions:
        """``max_model_len``: where the settings name none."""
        return EngineOptions(
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            max_model_len=self.max_model_len or max_model_len,
            policy=layout.policy,
            tpot_target_seconds=self.tpot_target_seconds,
            overlap=self.overlap,
        )


def modelled(
    model: models.Model, gpus: hardware.Hardware, layout: Layout, settings: Settings,
    software: hardware.Software | None = None, fitted: Fitted | None = None,
) -> ModelledExecutor:  # fmt: skip
    """One engine of a layout; raises UserError when the model does not fit or cannot be laid out so.

    Other assumptions than those committed are for asking how much depends on them.
    """
    engine = memory.Engine(
        base=layout.base,
        pinned=layout.pinned,
        copies=settings.copies,
        max_batched_tokens=settings.max_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
        memory_fraction=settings.memory_fraction,
    )
    return ModelledExecutor(model, gpus.gpu, engine, software or hardware.software(), fitted or published_fit())
