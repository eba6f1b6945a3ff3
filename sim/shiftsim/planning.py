"""From what a user names (model, hardware, layout, settings) to the executor and the options of one engine."""

from __future__ import annotations

from dataclasses import dataclass

from shiftcore.layout import Gear, allowed_gears

from shiftsim import hardware, models
from shiftsim.engine import EngineOptions
from shiftsim.errors import UserError
from shiftsim.executor import memory
from shiftsim.executor.fitted import Fitted, published_fit
from shiftsim.executor.measured import MeasuredExecutor, Measurement
from shiftsim.executor.modelled import ModelledExecutor
from shiftsim.layouts import Layout
from shiftsim.work import Executor

# Of vLLM 0.10 on such GPUs, and what the published evaluation is taken to have used.
MAX_NUM_SEQS = 1024
MAX_BATCHED_TOKENS = 8192
MAX_MODEL_LEN = 8192  # of our runtime on CPU
# What a pod runs with whose resource says nothing of it.
POD_MAX_NUM_SEQS, POD_MAX_BATCHED_TOKENS, POD_KV_MEMORY_PERCENT = 64, 2048, 80


@dataclass(frozen=True)
class Settings:
    """Of every engine, whatever its layout. None: the model's own length; in a measured pod, what it ran with.

    ``kv_memory_percent``: as in a resource, in place of ``memory_fraction``; see memory.Engine.
    """

    max_num_seqs: int | None = None
    max_batched_tokens: int | None = None
    max_model_len: int | None = None
    memory_fraction: float = 0.90
    kv_memory_percent: int | None = None
    copies: bool = False  # a second copy of the weights for the tp gear, as the published implementation holds
    tpot_target_seconds: float | None = None
    overlap: bool = True

    def __post_init__(self) -> None:
        for name, value in (
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-batched-tokens", self.max_batched_tokens),
            ("--max-model-len", self.max_model_len),
        ):
            if value is not None and value < 1:
                raise UserError(f"{name} {value} must be at least 1")
        if not 0 < self.memory_fraction <= 1:
            raise UserError(f"--memory-fraction {self.memory_fraction:g} must be above 0 and at most 1")
        if self.tpot_target_seconds is not None and not self.tpot_target_seconds > 0:
            raise UserError(f"--tpot-target-ms {self.tpot_target_seconds * 1000:g} must be above 0")

    def options(
        self, layout: Layout, max_model_len: int, max_num_seqs: int | None = None, max_batched_tokens: int | None = None
    ) -> EngineOptions:
        """``max_...``: where the settings name none."""
        return EngineOptions(
            max_num_seqs=self.max_num_seqs or max_num_seqs or MAX_NUM_SEQS,
            max_batched_tokens=self.max_batched_tokens or max_batched_tokens or MAX_BATCHED_TOKENS,
            max_model_len=self.max_model_len or max_model_len,
            policy=layout.policy,
            tpot_target_seconds=self.tpot_target_seconds,
            overlap=self.overlap,
        )


@dataclass(frozen=True)
class Modelled:
    """Pods of GPUs that nobody need have."""

    model: models.Model
    gpus: hardware.Hardware
    settings: Settings

    @property
    def ranks(self) -> int:
        return self.gpus.num_gpus

    @property
    def base(self) -> str:
        """Of the layouts that shift."""
        return Gear(self.ranks, 1).name

    def engine(self, layout: Layout) -> tuple[Executor, EngineOptions]:
        """One engine of a layout; raises UserError or LayoutError when the model does not fit so."""
        options = self.settings.options(layout, self.model.max_model_len)
        return modelled(self.model, self.gpus, layout, self.settings), options


def modelled(
    model: models.Model, gpus: hardware.Hardware, layout: Layout, settings: Settings,
    software: hardware.Software | None = None, fitted: Fitted | None = None,
) -> ModelledExecutor:  # fmt: skip
    """One engine of a layout; raises UserError when the model does not fit or cannot be laid out so.

    Other assumptions than those committed are for asking how much depends on them.
    """
    options = settings.options(layout, model.max_model_len)
    engine = memory.Engine(
        base=layout.base,
        pinned=layout.pinned,
        copies=settings.copies,
        max_batched_tokens=options.max_batched_tokens,
        max_num_seqs=options.max_num_seqs,
        memory_fraction=settings.memory_fraction,
        kv_memory_percent=settings.kv_memory_percent,
    )
    return ModelledExecutor(model, gpus.gpu, engine, software or hardware.software(), fitted or published_fit())


@dataclass(frozen=True)
class Measured:
    """Pods like one that measured itself. ``kv_tokens`` None: what it measured, else all that its sequences can use."""

    measurement: Measurement
    settings: Settings
    kv_tokens: int | None = None
    step_seconds: float = 0.0

    @property
    def ranks(self) -> int:
        return self.measurement.base.ranks

    @property
    def base(self) -> str:
        return self.measurement.base.name

    def engine(self, layout: Layout) -> tuple[Executor, EngineOptions]:
        """One engine of a layout; raises UserError for a gear that was not measured."""
        found, name = self.measurement, layout.name
        gears = (layout.pinned,) if layout.pinned else allowed_gears(layout.base)
        missing = [gear.name for gear in gears if gear not in found.costs]
        if layout.engines > 1 or missing:
            measured = ", ".join(gear.name for gear in found.costs)
            needed = " and ".join(missing) or "one GPU alone"
            raise UserError(f"{name} needs the costs of {needed}, measured are {measured}; measure a pod that has it")
        options = self.settings.options(
            layout, found.max_model_len or MAX_MODEL_LEN, found.max_num_seqs, found.max_batched_tokens
        )
        known = self.kv_tokens or found.kv_tokens
        executor = MeasuredExecutor(
            found,
            known or options.max_num_seqs * options.max_model_len,
            found.max_num_seqs or options.max_num_seqs,
            options.max_model_len,
            self.step_seconds,
            kv_assumed=known is None,
        )
        return executor, options


Plan = Modelled | Measured
