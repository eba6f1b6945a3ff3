"""Real rank processes for tests: started through the engine's own start-up, driven step by step."""

from __future__ import annotations

import random
import selectors
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shiftcore.layout import Gear
from shiftruntime.engine.options import EngineOptions
from shiftruntime.engine.ranks import RankGroup
from shiftruntime.engine.startup import Started, Startup
from shiftruntime.worker.messages import ChunkPlan, Done, Sample, StepPlan

BLOCK_SIZE = 4


@dataclass
class Group:
    ranks: RankGroup
    started: Started

    @property
    def gears(self) -> tuple[Gear, ...]:
        return self.started.table.gears

    def run(self, gear: Gear, chunks: tuple[ChunkPlan, ...]) -> Done:
        return self.ranks.run(StepPlan(self.ranks.last_step + 1, gear.name, 0, chunks))


@contextmanager
def rank_group(model: Path, ranks: int, *, dtype: str, exact: bool, startup_seconds: float = 60) -> Iterator[Group]:
    base = Gear(ranks, 1)
    options = EngineOptions(
        model=str(model), ranks=ranks, base_gear=base, dtype=dtype, exact=exact, max_num_seqs=8, max_batched_tokens=64,
        max_model_len=64, block_size=BLOCK_SIZE, kv_memory_bytes=4 << 20, calibrate=False,
        startup_timeout_seconds=startup_seconds,
    )  # fmt: skip
    with selectors.DefaultSelector() as selector:
        group = RankGroup(ranks, selector, stall_seconds=20.0)
        try:
            yield Group(group, Startup(options, group, lambda _: None).run())
        finally:
            group.close()


def score_with_random_gears(group: Group, sequences: Sequence[Sequence[int]], rng: random.Random) -> Scores:
    """Teacher-forced scores of several sequences, interleaved in random chunks, each step in a random gear.

    The token that would follow each position is drawn as well, greedily or with noise by the position.
    """
    done = [0] * len(sequences)
    scores: list[list[float]] = [[] for _ in sequences]
    tokens_drawn: list[dict[int, tuple[int, float]]] = [{} for _ in sequences]
    shifts, last = 0, None
    per_sequence = -(-max(map(len, sequences)) // BLOCK_SIZE)
    groups = len(group.started.config.layer_groups)
    num_blocks = groups * per_sequence * len(sequences)
    assert num_blocks <= group.started.num_blocks, f"{num_blocks} blocks needed, there are {group.started.num_blocks}"
    while any(d < len(s) - 1 for d, s in zip(done, sequences, strict=True)):
        gear = rng.choice(group.gears)
        shifts += last is not None and gear != last
        last = gear
        unfinished = [i for i, s in enumerate(sequences) if done[i] < len(s) - 1]
        chosen = sorted(rng.sample(unfinished, rng.randint(1, len(unfinished))))
        chunks = []
        for i in chosen:
            length = min(rng.choice((1, 1, 1, 1, 2, 5)), len(sequences[i]) - 1 - done[i])
            tokens = tuple(sequences[i][done[i] : done[i] + length])
            targets = tuple(sequences[i][done[i] + 1 : done[i] + length + 1])
            end = done[i] + length
            tables = [
                tuple(range(first, first + -(-end // BLOCK_SIZE)))
                for first in range(i * per_sequence, num_blocks, num_blocks // groups)
            ]
            sample = Sample(temperature=end % 3 / 2, top_p=0.9, seed=i, position=end, logprob=True)
            chunks.append(ChunkPlan(tokens, done[i], tables[0], sample, targets, tuple(tables[1:])))
        result = group.run(gear, tuple(chunks))
        values = list(result.target_logprobs)
        for i, chunk, drawn in zip(chosen, chunks, zip(result.tokens, result.logprobs, strict=True), strict=True):
            tokens_drawn[i][chunk.start + len(chunk.tokens)] = drawn
            scores[i] += values[: len(chunk.tokens)]
            del values[: len(chunk.tokens)]
            done[i] += len(chunk.tokens)
    return Scores(scores, tokens_drawn, shifts)


@dataclass
class Scores:
    logprobs: list[list[float]]  # per sequence, of tokens 1 …
    drawn: list[dict[int, tuple[int, float]]]  # per sequence: position -> (token, log probability)
    shifts: int
