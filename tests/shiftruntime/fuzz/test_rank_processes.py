"""The gear fuzz with real rank processes, fewer shifts: tokens and scores have the bits that one rank computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.campaign_outcome import SEED_VARIABLE, chosen_seed
from helpers.gear_fuzz.check import Failure
from helpers.gear_fuzz.processes import fuzz_processes
from helpers.tiny_models import save_gemma3, save_llama

pytestmark = pytest.mark.ranks

SEED = 20_261_121
SHIFTS = 70


@pytest.mark.timeout(300)  # ranks on few cores take turns
@pytest.mark.parametrize(("family", "ranks"), [("llama", 2), ("gemma", 4)])
def test_rank_processes_compute_what_one_rank_computes(family: str, ranks: int, tmp_path: Path) -> None:
    if family == "llama":
        save_llama(tmp_path, num_key_value_heads=2)
    else:
        save_gemma3(tmp_path, num_hidden_layers=3)
    seed = chosen_seed(SEED)
    total = fuzz_processes(tmp_path, ranks, seed, SHIFTS)
    assert not isinstance(total, Failure), f"{SEED_VARIABLE}={seed}: {total}"
    print(f"{family}, {ranks} processes, seed {seed}: {total}")
    assert total.tokens >= 40
    assert total.scores >= 20
