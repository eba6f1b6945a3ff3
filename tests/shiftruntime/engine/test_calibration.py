"""Steps that are measured: they fit the cache, whatever its size."""

from __future__ import annotations

import pytest
from shiftcore.layout import Gear
from shiftruntime.engine.calibration import CacheShape, calibrate, step_chunks
from shiftruntime.worker.messages import ChunkPlan


@pytest.mark.parametrize(
    ("n", "num_blocks", "lengths"),
    [
        (3, 100, [1, 1, 1]),  # decodes with a context of 31 tokens: 8 blocks each
        (3, 24, [1, 1, 1]),
        (3, 23, [3]),  # three such sequences do not fit: a prefill
        (40, 18, [32, 8]),
        (40, 9, None),
    ],
)
def test_a_measured_step_fits_the_cache(n: int, num_blocks: int, lengths: list[int] | None) -> None:
    chunks = step_chunks(n, CacheShape(max_num_seqs=8, max_model_len=32, num_blocks=num_blocks, block_size=4))
    assert (chunks and [len(chunk.tokens) for chunk in chunks]) == lengths
    blocks = [block for chunk in chunks or () for block in chunk.blocks]
    assert len(set(blocks)) == len(blocks)
    assert all(block < num_blocks for block in blocks)


class SteadyMachine:
    """Steps that take what a formula says, on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pair_seconds: float) -> None:
        self.now = 0.0
        self._pair_seconds = pair_seconds
        for clock in ("monotonic", "perf_counter"):
            monkeypatch.setattr(f"shiftruntime.engine.calibration.time.{clock}", lambda: self.now)

    def run(self, gear: Gear, chunks: tuple[ChunkPlan, ...]) -> None:
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        pairs = sum(len(chunk.tokens) * chunk.start for chunk in chunks)
        self.now += 1e-3 + tokens * 1e-4 / gear.sequence + pairs * self._pair_seconds


@pytest.mark.parametrize("pair_seconds", [0.0, 2e-7])
def test_calibration_tells_tokens_from_context(monkeypatch: pytest.MonkeyPatch, pair_seconds: float) -> None:
    machine = SteadyMachine(monkeypatch, pair_seconds)
    shape = CacheShape(max_num_seqs=8, max_model_len=4096, num_blocks=2048, block_size=16)
    gears = (Gear(1, 2), Gear(2, 1))
    table = calibrate(machine.run, gears, shape, max_batched_tokens=512, budget_seconds=20)
    for gear in gears:
        assert table[gear].pair_seconds == pytest.approx(pair_seconds)
        assert table[gear].points[-1].tokens == 512
        assert table[gear].seconds(512) == pytest.approx(1e-3 + 512e-4 / gear.sequence)


def test_a_cache_without_room_for_a_long_context_says_nothing_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SteadyMachine(monkeypatch, 2e-7)
    shape = CacheShape(max_num_seqs=8, max_model_len=100, num_blocks=2048, block_size=16)
    table = calibrate(machine.run, (Gear(1, 2),), shape, max_batched_tokens=64, budget_seconds=20)
    assert table[Gear(1, 2)].pair_seconds == 0.0
