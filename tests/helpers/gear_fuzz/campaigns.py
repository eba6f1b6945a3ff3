"""The gear fuzz at full count, for tests/campaign.py."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from helpers.campaign_outcome import Outcome
from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, check
from helpers.gear_fuzz.many import fuzz, replay_command
from helpers.gear_fuzz.planted import BUGS, Bug
from helpers.gear_fuzz.processes import fuzz_processes
from helpers.tiny_models import save_llama
from helpers.tiny_moe import save_mixtral

SHIFTS = 10_000
PROCESS_SHIFTS = 200  # of each number of ranks
PROCESS_STARTUP_SECONDS = 240  # eight ranks import torch on few cores
CASES_PER_BUG = 150
DRIFT_WIDTHS = (16, 1, 2, 5, 8)  # of the pieces of each of 16 requests
DRIFT_PIECES = 4  # of each width: 2048 positions


def gear_fuzz(seed: int, scale: float) -> Outcome:
    result = fuzz(seed, max(1, round(SHIFTS * scale)))
    notes = [str(result), *(f"{failure}\n  {replay_command(failure)}" for failure in result.failures)]
    return Outcome(result.tally.shifts, "shifts", len(result.failures), tuple(notes))


def rank_processes(seed: int, scale: float) -> Outcome:
    """Real ranks over shared memory; dense and of experts in turn, kv heads split and replicated."""
    notes, bad, shifts = [], 0, 0
    for i, ranks in enumerate((2, 3, 4, 6, 8)):
        save = (save_llama, save_mixtral)[i % 2]
        with TemporaryDirectory() as folder:
            save(Path(folder), num_attention_heads=24, head_dim=4, num_key_value_heads=3 if ranks % 3 == 0 else 2)
            found = fuzz_processes(
                Path(folder), ranks, seed, max(1, round(PROCESS_SHIFTS * scale)), PROCESS_STARTUP_SECONDS
            )
        bad += isinstance(found, Failure)
        shifts += 0 if isinstance(found, Failure) else found.shifts
        notes.append(f"{ranks} processes, {save.__name__.removeprefix('save_')}: {found}")
    return Outcome(shifts, "shifts", bad, tuple(notes))


def planted_bugs(seed: int, _scale: float) -> Outcome:
    """Bad is a bug that no case finds. Their number is a bound and not a count, so that no scale changes it."""
    found = {bug: _cases_to_find(bug, seed) for bug in BUGS}
    notes = [
        f"{bug.name}: {f'case {number}' if number else 'NOT FOUND'} ({bug.story})" for bug, number in found.items()
    ]
    return Outcome(len(BUGS), "bugs", sum(number is None for number in found.values()), tuple(notes))


def plain_drift(seed: int, scale: float) -> Outcome:
    """Bad is a dtype and number of ranks whose drift is too far; injected are positions."""
    from helpers.gear_fuzz.real_text import gemma_drift

    torch.set_num_threads(1)
    widths = [width for width in DRIFT_WIDTHS for _ in range(max(1, round(DRIFT_PIECES * scale)))]
    notes, bad, positions = [], 0, 0
    for dtype, ranks in product(("float32", "bfloat16"), (2, 4)):
        with TemporaryDirectory() as folder:
            drift = gemma_drift(Path(folder), dtype, ranks, widths, seed)
        bad += not drift.holds
        positions += len(drift.shifted)
        notes.append(f"Gemma 3 270M, {dtype}, {ranks} ranks: {drift}, ratio {drift.ratio:.2f}")
    return Outcome(positions, "positions", bad, tuple(notes))


def _cases_to_find(bug: Bug, seed: int) -> int | None:
    outcomes = (check(Case.draw(seed + i, bug.ranks, bug.family), bug.wiring) for i in range(CASES_PER_BUG))
    return next((i for i, outcome in enumerate(outcomes, 1) if isinstance(outcome, Failure)), None)
