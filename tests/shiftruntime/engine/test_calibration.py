"""Steps that are measured: they fit the cache, whatever its size."""

from __future__ import annotations

import pytest
from shiftcore.gears import GearTable
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
    """Steps that take what a formula says, on a clock of their own.

    ``sequence_seconds``: what each step of a sequence gear takes beside its tokens.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pair_seconds: float, sequence_seconds: float = 0.0) -> None:
        self.now = 0.0
        self.steps: list[int] = []
        self._pair_seconds, self._sequence_seconds = pair_seconds, sequence_seconds
        for clock in ("monotonic", "perf_counter"):
            monkeypatch.setattr(f"shiftruntime.engine.calibration.time.{clock}", lambda: self.now)

    def run(self, gear: Gear, chunks: tuple[ChunkPlan, ...]) -> None:
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        pairs = sum(len(chunk.tokens) * chunk.start for chunk in chunks)
        self.steps.append(tokens)
        self.now += 1e-3 + tokens * 1e-4 / gear.sequence + pairs * self._pair_seconds
        self.now += self._sequence_seconds * (gear.sequence > 1)


@pytest.mark.parametrize("pair_seconds", [0.0, 2e-7])
def test_calibration_tells_tokens_from_context(monkeypatch: pytest.MonkeyPatch, pair_seconds: float) -> None:
    machine = SteadyMachine(monkeypatch, pair_seconds)
    shape = CacheShape(max_num_seqs=8, max_model_len=4096, num_blocks=2048, block_size=16)
    gears = (Gear(1, 2), Gear(2, 1))
    table = calibrate(machine.run, gears, shape, max_batched_tokens=512, budget_seconds=20)
    for gear in gears:
        assert table[gear].pair_seconds == pytest.approx(pair_seconds)
        assert table[gear].points[-1].tokens == 512
        assert table[gear].seconds(512) == pytest.approx(1e-3 + 512e-4 / gear.sequence, rel=0.02)


def test_a_cache_without_room_for_a_long_context_says_nothing_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SteadyMachine(monkeypatch, 2e-7)
    shape = CacheShape(max_num_seqs=8, max_model_len=100, num_blocks=2048, block_size=16)
    table = calibrate(machine.run, (Gear(1, 2),), shape, max_batched_tokens=64, budget_seconds=20)
    assert table[Gear(1, 2)].pair_seconds == 0.0


SHAPE = CacheShape(max_num_seqs=8, max_model_len=4096, num_blocks=2048, block_size=16)
GEARS = (Gear(1, 2), Gear(2, 1))


def test_no_length_of_a_prompt_is_measured_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN compiles a product for its number of rows: steps of a length that was met took 20 to 40 ms less than those
    of prompts that are served."""
    machine = SteadyMachine(monkeypatch, 0.0)
    table = calibrate(machine.run, GEARS, SHAPE, max_batched_tokens=512, budget_seconds=20)
    assert {point.samples for point in table[GEARS[0]].points} == {9}
    assert {step for step in machine.steps if step <= SHAPE.max_num_seqs} == {1, 2, 4, 8}, "decodes are as they are"
    for n in (64, 128, 256, 512):
        near = [step for step in machine.steps if n * 5 / 6 < step < n * 7 / 6]
        assert max(near.count(step) for step in near) <= 6, f"of {n}: {near}"
        assert len({step // 2 for step in near}) >= 5, "nor one of the rows of a sequence gear"
        assert n * 0.95 <= sum(near) / len(near) <= n
    assert max(machine.steps) <= 512


CROSSING_TOKENS = 300
CROSSING_SECONDS = CROSSING_TOKENS * (1e-4 - 1e-4 / 2)


def test_sizes_between_the_two_that_bracket_the_crossover_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SteadyMachine(monkeypatch, 0.0, CROSSING_SECONDS)
    table = calibrate(machine.run, GEARS, SHAPE, max_batched_tokens=512, budget_seconds=20)
    sizes = [point.tokens for point in table[GEARS[0]].points]
    assert sizes == [point.tokens for point in table[GEARS[1]].points]
    assert set(sizes) - {1 << i for i in range(10)} == {384, 320, 288, 304}
    assert GearTable(GEARS[1], table).crossover.tokens in (304, 320), "lengths that differ blur it by one step"
    rounds = {point.samples for gear in GEARS for point in table[gear].points}
    assert rounds == {9}, "all sizes are measured equally often"
    assert machine.now < 20


@pytest.mark.parametrize("budget_seconds", [0.05, 0.6, 1.0, 1.4, 1.8, 2.2, 3.0, 4.0])
def test_sizes_that_follow_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch, budget_seconds: float) -> None:
    """What overruns is only what a calibration always measures."""

    def seconds() -> float:
        machine = SteadyMachine(monkeypatch, 0.0, CROSSING_SECONDS)
        calibrate(machine.run, GEARS, SHAPE, max_batched_tokens=512, budget_seconds=budget_seconds)
        return machine.now

    refined = seconds()
    monkeypatch.setattr("shiftruntime.engine.calibration.next_size", lambda table: None)
    assert refined <= max(budget_seconds, seconds())


def test_without_a_crossover_nothing_is_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SteadyMachine(monkeypatch, 0.0, 1.0)
    table = calibrate(machine.run, GEARS, SHAPE, max_batched_tokens=512, budget_seconds=200)
    assert GearTable(GEARS[1], table).crossover.reason == "NoCrossover"
    assert [point.tokens for point in table[GEARS[0]].points] == [1 << i for i in range(10)]
