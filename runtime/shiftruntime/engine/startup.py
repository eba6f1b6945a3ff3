"""From processes to a proven set of gears: start ranks → verify → load → KV → warm → calibrate → self-check."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shiftcore.gears import GearTable
from shiftcore.layout import Gear, allowed_gears
from shiftprotos import contract

from shiftruntime.config import ModelConfig
from shiftruntime.engine import calibration_file
from shiftruntime.engine.activations import Activations, StepShape
from shiftruntime.engine.calibration import CacheShape, Interrupted, calibrate, step_chunks
from shiftruntime.engine.memory import available_bytes, check_weights_fit, kv_blocks
from shiftruntime.engine.messages import PhaseUpdate, SelfCheckState
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.ranks import RankGroup
from shiftruntime.engine.self_check import self_check
from shiftruntime.engine.verification import Verification
from shiftruntime.errors import StartupError
from shiftruntime.worker.messages import (
    LOGITS_AT_ONCE,
    Allocated,
    AllocateKv,
    Attach,
    Attached,
    ChunkPlan,
    Load,
    Loaded,
    LoadProgress,
    Open,
    Opened,
    StepPlan,
)

_DEFAULT_MODEL_LEN = 8192
_CALIBRATION_SECONDS = 20.0
_WARM_TOKENS = 32
_VERIFY_TICK_SECONDS = 0.02
_VERIFY_REPORT_SECONDS = 0.5

Report = Callable[[PhaseUpdate], None]


@dataclass(frozen=True)
class Started:
    """What the engine serves with."""

    config: ModelConfig
    dtype: str
    max_model_len: int
    num_blocks: int
    table: GearTable
    self_check: SelfCheckState


class Startup:
    """One start. Every phase is reported; every wait has the start-up deadline."""

    def __init__(self, options: EngineOptions, ranks: RankGroup, report: Report) -> None:
        self._options = options
        self._ranks = ranks
        self._report = report
        self._deadline = time.monotonic() + options.startup_timeout_seconds
        self._gears = allowed_gears(options.base_gear)
        self._windows: tuple[int | None, ...] = ()  # of the model's layer groups

    def run(self) -> Started:
        """Raises StartupError or RankError."""
        with Verification(self._options.model, self._options.require_manifest) as verification:
            with self._phase(contract.PHASE_RANKS):
                self._ranks.wait_hello(self._left())
            self._verify(verification)
        opened = self._load()
        max_model_len = self._max_model_len(opened.config)
        num_blocks = self._kv(opened, max_model_len)
        with self._phase(contract.PHASE_WARM):
            self._warm(max_model_len, num_blocks)
        table = GearTable(self._options.base_gear, self._costs(opened, max_model_len, num_blocks))
        with self._phase(contract.PHASE_SELF_CHECK):
            check = self._self_check(opened, max_model_len)
        if not check.passed:
            raise StartupError(contract.REASON_SELF_CHECK_FAILED, check.message)
        return Started(opened.config, opened.dtype, max_model_len, num_blocks, table, check)

    def _verify(self, verification: Verification) -> None:
        """Wait for the sums, which were begun with the ranks; a model without a manifest has no such phase."""
        started = reported = time.monotonic()
        while verification.running:
            self._ranks.serve(_VERIFY_TICK_SECONDS)
            now = time.monotonic()
            if now - reported > _VERIFY_REPORT_SECONDS:
                reported = now
                self._report(
                    PhaseUpdate(
                        contract.PHASE_VERIFY,
                        now - started,
                        verification.done_bytes,
                        verification.total_bytes,
                        done=False,
                    )
                )
            if not self._left():
                raise StartupError(
                    contract.REASON_START_TIMEOUT,
                    f"the sums of {verification.done_bytes >> 20} of {verification.total_bytes >> 20} MiB were checked "
                    f"when the start-up deadline of {self._options.startup_timeout_seconds:g} s passed",
                )
        verification.result()
        if total := verification.total_bytes:
            self._report(PhaseUpdate(contract.PHASE_VERIFY, time.monotonic() - started, total, total, done=True))

    def _load(self) -> Opened:
        options, ranks = self._options, self._ranks
        with self._phase(contract.PHASE_OPEN):
            opened = ranks.ask(
                0, Open(options.model, options.dtype, options.exact, options.quantisation), Opened, self._left()
            )
        started = time.monotonic()

        def progress(update: LoadProgress) -> None:
            self._report(
                PhaseUpdate(
                    contract.PHASE_LOAD, time.monotonic() - started, update.done_bytes, update.total_bytes, done=False
                )
            )

        with self._phase(contract.PHASE_LOAD, opened.weights_bytes):
            check_weights_fit(opened.weights_bytes)
            os.ftruncate(ranks.weights_fd, opened.weights_bytes)
            ranks.send(0, Load(opened.weights_bytes))
            ranks.collect(Loaded, [0], self._left(), "Load", progress)
        return opened

    def _kv(self, opened: Opened, max_model_len: int) -> int:
        options, ranks = self._options, self._ranks
        self._windows = opened.config.group_windows
        attach = Attach(
            opened.config, opened.dtype, options.exact, opened.weights_bytes, options.block_size, options.kv_cache_dtype
        )
        with self._phase(contract.PHASE_KV):
            attached = ranks.ask_all(attach, Attached, self._left())
            # Identical figures by construction; the largest is the safe one.
            block_bytes = max(answer.kv_block_bytes for answer in attached)
            num_blocks = kv_blocks(options, max_model_len, block_bytes, available_bytes(), self._windows)
            if options.kv_memory_bytes is None:
                free = self._free_beside_steps(opened.config, max_model_len, num_blocks)
                num_blocks = kv_blocks(options, max_model_len, block_bytes, max(0, free), self._windows)
            ranks.ask_all(AllocateKv(num_blocks), Allocated, self._left())
        return num_blocks

    def _free_beside_steps(self, config: ModelConfig, max_model_len: int, num_blocks: int) -> int:
        """What the largest steps leave free, all ranks together.

        They run in the tp gear, where every rank holds every row, on a cache that holds one sequence at most.
        """
        options, ranks = self._options, self._ranks
        num_blocks = min(num_blocks, -(-max_model_len // options.block_size))
        ranks.ask_all(AllocateKv(num_blocks), Allocated, self._left())
        limits = options.max_num_seqs, options.max_batched_tokens, max_model_len
        logit_rows = max(1, LOGITS_AT_ONCE * options.ranks // config.padded_vocab(options.ranks))
        shape = StepShape(*limits, num_blocks, options.block_size, logit_rows, len(self._windows))
        activations = Activations(self.run_chunks, ranks.pids, Gear(1, options.ranks), shape)
        activations.settle()
        return available_bytes() - activations.growth_bytes()

    def _warm(self, max_model_len: int, num_blocks: int) -> None:
        options = self._options
        tokens = min(_WARM_TOKENS, options.max_batched_tokens, max_model_len)
        for n in (1, tokens):
            chunks = step_chunks(n, self._shape(max_model_len, num_blocks))
            assert chunks is not None, f"{num_blocks} blocks cannot hold a step of {n} tokens"
            for gear in self._gears:
                self.run_chunks(gear, chunks)

    def _costs(self, opened: Opened, max_model_len: int, num_blocks: int) -> calibration_file.Costs:
        options = self._options
        if not options.calibrate:
            return {}
        with self._phase(contract.PHASE_CALIBRATE):
            if options.calibration_file:
                provenance = calibration_file.Provenance.of(options, opened.config, opened.dtype, max_model_len)
                kept = calibration_file.read(Path(options.calibration_file), provenance, self._gears)
                if kept is not None:
                    return kept
            return self.calibrate(opened.config, opened.dtype, max_model_len, num_blocks)

    def calibrate(
        self, config: ModelConfig, dtype: str, max_model_len: int, num_blocks: int,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> calibration_file.Costs:  # fmt: skip
        """Measure the gears, and keep the costs where the options say.

        Raises Interrupted after the step in which ``is_wanted`` became false; nothing is kept then.
        """
        options = self._options

        def run(gear: Gear, chunks: tuple[ChunkPlan, ...]) -> None:
            self.run_chunks(gear, chunks)
            if not is_wanted():
                raise Interrupted

        shape = self._shape(max_model_len, num_blocks)
        costs = calibrate(
            run,
            self._gears,
            shape,
            max_batched_tokens=options.max_batched_tokens,
            budget_seconds=_CALIBRATION_SECONDS,
        )
        if options.calibration_file:
            provenance = calibration_file.Provenance.of(options, config, dtype, max_model_len)
            calibration_file.write(Path(options.calibration_file), provenance, costs)
        return costs

    def _shape(self, max_model_len: int, num_blocks: int) -> CacheShape:
        options = self._options
        return CacheShape(options.max_num_seqs, max_model_len, num_blocks, options.block_size, len(self._windows))

    def _self_check(self, opened: Opened, max_model_len: int) -> SelfCheckState:
        def score(gear: Gear, chunk: ChunkPlan) -> tuple[float, ...]:
            return self.run_chunks(gear, (chunk,))

        return self_check(
            score,
            self._gears,
            # Gears round what they cache apart from each other, and no finer than the cache.
            dtype=opened.dtype if self._options.kv_cache_dtype == "auto" else self._options.kv_cache_dtype,
            exact=self._options.exact,
            vocab_size=opened.config.vocab_size,
            max_model_len=max_model_len,
            block_size=self._options.block_size,
            layer_groups=len(self._windows),
        )

    def run_chunks(self, gear: Gear, chunks: tuple[ChunkPlan, ...]) -> tuple[float, ...]:
        """One step outside of serving; returns the log probabilities of its targets."""
        done = self._ranks.run(StepPlan(self._ranks.last_step + 1, gear.name, 0, chunks))
        return done.target_logprobs

    def _max_model_len(self, config: ModelConfig) -> int:
        own, asked = config.max_position_embeddings, self._options.max_model_len
        if asked is None:
            return min(own, _DEFAULT_MODEL_LEN)
        if asked > own:
            raise StartupError(
                contract.REASON_INVALID_ARGUMENT, f"max-model-len {asked} exceeds the {own} positions of the model"
            )
        return asked

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    @contextmanager
    def _phase(self, name: str, total_bytes: int = 0) -> Iterator[None]:
        started = time.monotonic()
        self._report(PhaseUpdate(name, 0.0, 0, total_bytes, done=False))
        yield
        self._report(PhaseUpdate(name, time.monotonic() - started, total_bytes, total_bytes, done=True))
