"""A case on real rank processes. They hide their logits and caches: tokens and scores are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, Tally, compare
from helpers.gear_fuzz.drive import CaseError, Driver, Parts, Tables
from helpers.gear_fuzz.ranks import CachedHeads
from helpers.gear_fuzz.tiny import LoadedWeights
from helpers.rank_groups import BLOCK_SIZE, Group
from shiftcore.layout import Gear
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
