"""Random gears, chunks, preemptions, prefix hits and aborts change no bit of what one rank computes alone.

Reduced here; ``make campaign`` runs the full count. A failure is made as small as it gets and prints the line from
which it can be made again: ``python tests/campaign.py --replay 'LINE'``.
"""

from __future__ import annotations

import pytest
from helpers.campaign_outcome import SEED_VARIABLE, chosen_seed
from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.many import fuzz, replay_command

SEED = 20_261_121
SHIFTS = 700


def test_a_case_can_be_made_again_from_its_line() -> None:
    for seed in range(50):
        case = Case.draw(seed)
        again = Case.parse(str(case))
        assert again == case
        assert again.request_specs() == case.request_specs()
        assert [again.step(i) for i in range(20)] == [case.step(i) for i in range(20)]


def test_leaving_requests_out_does_not_change_the_others() -> None:
    case = Case.draw(5)
    fewer = Case.parse(str(case).replace(f"requests={','.join(map(str, case.requests))}", "requests=0,2"))
    assert fewer.request_specs() == (case.request(0), case.request(2))


@pytest.mark.timeout(600)
def test_no_gear_changes_a_bit(capsys: pytest.CaptureFixture[str]) -> None:
    seed = chosen_seed(SEED)
    result = fuzz(seed, SHIFTS)
    with capsys.disabled():
        print(f"\ngear fuzz, {SEED_VARIABLE}={seed}: {result}")
    assert not result.failures, "\n".join(f"{failure}\n  {replay_command(failure)}" for failure in result.failures)
    tally = result.tally
    assert tally.shifts >= SHIFTS
    for name, least in {"preemptions": 5, "aborted": 5, "hit_tokens": 100, "padded_steps": 200, "scores": 200}.items():
        assert getattr(tally, name) >= least, f"the cases hold too few {name}: {tally}"
