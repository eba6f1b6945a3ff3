"""Many cases on all cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice

import torch
from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, Tally, check
from helpers.gear_fuzz.shrink import shrink
from helpers.gear_fuzz.tiny import RANKS

_CASES_AT_ONCE = 4  # per process and hand-over


def cases(seed: int) -> Iterator[Case]:
    """Endless; every number of ranks in turn."""
    return (Case.draw(seed + i, RANKS[i % len(RANKS)]) for i in count())


@dataclass
class Result:
    tally: Tally = field(default_factory=Tally)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        t = self.tally
        return (
            f"{t.cases} cases, {t.steps} steps ({t.padded_steps} padded, {t.overlapped} scheduled ahead), {t.shifts} "
            f"shifts, {t.requests} requests "
            f"({t.aborted} ended early), {t.preemptions} preemptions, {t.hit_tokens} tokens from the prefix cache; "
            f"compared: {t.logit_rows} logit rows, {t.tokens} tokens, {t.scores} scores, {t.kv_entries} cached heads; "
            f"{len(self.failures)} bad, {self.seconds:.0f} s"
        )


def fuzz(seed: int, shifts: int, processes: int | None = None) -> Result:
    """Cases from ``seed`` on until so many shifts are done; failures are shrunk. The first ones end the run."""
    result, started, drawn = Result(), time.monotonic(), cases(seed)
    workers = processes or len(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_use_one_thread) as pool:
        while result.tally.shifts < shifts and not result.failures:
            batch = list(islice(drawn, _CASES_AT_ONCE * workers))
            for outcome in pool.map(check_and_shrink, batch):
                if isinstance(outcome, Failure):
                    result.failures.append(outcome)
                else:
                    result.tally += outcome
    result.seconds = time.monotonic() - started
    return result


def check_and_shrink(case: Case) -> Tally | Failure:
    outcome = check(case)
    return shrink(outcome, check) if isinstance(outcome, Failure) else outcome


def replay_command(failure: Failure) -> str:
    return f"python tests/campaign.py --replay '{failure.case}'"


def _use_one_thread() -> None:
    torch.set_num_threads(1)
