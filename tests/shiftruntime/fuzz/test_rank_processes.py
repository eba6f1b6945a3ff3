"""The gear fuzz with real rank processes, fewer shifts: tokens and scores have the bits that one rank computes."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from helpers.campaign_outcome import SEED_VARIABLE, chosen_seed
from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, Tally
from helpers.gear_fuzz.processes import check_on_processes
from helpers.gear_fuzz.tiny import load_source
from helpers.rank_groups import rank_group
from helpers.tiny_models import save_gemma3, save_llama
from shiftruntime.models.source import open_model

pytestmark = pytest.mark.ranks

SEED = 20_261_121
SHIFTS = 70
DTYPE = "float32"


@pytest.mark.timeout(300)  # ranks on few cores take turns
@pytest.mark.parametrize(("family", "ranks"), [("llama", 2), ("gemma", 4)])
def test_rank_processes_compute_what_one_rank_computes(family: str, ranks: int, tmp_path: Path) -> None:
    if family == "llama":
        save_llama(tmp_path, num_key_value_heads=2)
    else:
        save_gemma3(tmp_path, num_hidden_layers=3)
    alone = load_source(open_model(tmp_path), DTYPE, 1)
    seed, total = chosen_seed(SEED), Tally()
    with rank_group(tmp_path, ranks, dtype=DTYPE, exact=True) as group:
        for i in count():
            outcome = check_on_processes(Case.draw(seed + i, ranks), group, alone)
            assert not isinstance(outcome, Failure), f"{SEED_VARIABLE}={seed}: {outcome}"
            total += outcome
            if total.shifts >= SHIFTS:
                break
    print(f"{family}, {ranks} processes, seed {seed}: {total}")
    assert total.tokens >= 40
    assert total.scores >= 20
