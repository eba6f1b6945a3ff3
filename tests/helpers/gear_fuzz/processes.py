"""Cases on real rank processes. They hide their logits and caches: tokens and scores are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, Tally, compare
from helpers.gear_fuzz.drive import CaseError, Driver, Parts, Tables
from helpers.gear_fuzz.ranks import CachedHeads
from helpers.gear_fuzz.tiny import LoadedWeights, load_source
from helpers.rank_groups import BLOCK_SIZE, Group, rank_group
from shiftcore.layout import Gear
from shiftruntime.models.source import open_model
from shiftruntime.worker.messages import ChunkPlan, Done


@dataclass(frozen=True)
class ProcessRanks:
    """Implements drive.Ranks over a group of processes."""

    group: Group

    def run(self, gear: Gear, chunks: Sequence[ChunkPlan]) -> Done:
        return self.group.run(gear, tuple(chunks))

    def logits(self) -> None:
        return None

    def cached(self, tables: Tables, tokens: int) -> list[CachedHeads]:
        return []

    def poison(self, blocks: Sequence[int]) -> None:
        """Not from outside."""


def check_on_processes(case: Case, group: Group, alone: LoadedWeights) -> Tally | Failure:
    """``alone``: the group's model for one rank. The group takes one case after another, on the same cache."""
    config = group.started.config
    case = replace(case, block_size=BLOCK_SIZE, vocabulary=config.vocab_size)
    try:
        run = Driver(case, config, ProcessRanks(group), Parts()).drive()
    except CaseError as error:
        return Failure(case, error.step, str(error))
    return compare(case, run, alone)


def fuzz_processes(model: Path, ranks: int, seed: int, shifts: int, startup_seconds: float = 60) -> Tally | Failure:
    """Cases from the seed on, until so many shifts were compared or one fails; float32 in exact mode."""
    alone, total = load_source(open_model(model), "float32", 1), Tally()
    with rank_group(model, ranks, dtype="float32", exact=True, startup_seconds=startup_seconds) as group:
        for i in count():
            outcome = check_on_processes(Case.draw(seed + i, ranks), group, alone)
            if isinstance(outcome, Failure):
                return outcome
            total += outcome
            if total.shifts >= shifts:
                return total
    raise AssertionError("unreachable")
