"""Whatever happens between the operator and the API server, work ends as it ends without faults.

Reduced here; ``make campaign`` runs the full count. A plan that fails is made smaller and prints the line from which it
can be run again: ``python tests/campaign.py --replay 'LINE'``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.api_faults.campaigns import find
from helpers.api_faults.case import KINDS, Case
from helpers.api_faults.check import Laboratory
from helpers.api_faults.many import replay_command, run_all, take
from helpers.api_faults.workloads import WORKLOADS
from helpers.campaign_outcome import SEED_VARIABLE, chosen_seed
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import ControlPlane

SEED = 20_261_121
# Of the planted bugs those that need few plans; the campaign has all of them.
SOME_BUGS = ("random-name", "creates-while-deleted")


@pytest.fixture
async def laboratory(plane: ControlPlane, kubelet: Kubelet, tmp_path: Path) -> AsyncIterator[Laboratory]:
    made = Laboratory(plane, kubelet, tmp_path)
    await made.open()
    yield made
    await made.close()


def test_a_plan_can_be_made_again_from_its_line() -> None:
    drawn = [Case.draw(seed, workload) for seed in range(60) for workload in ("create", "rollout")]
    assert [Case.parse(str(case)) for case in drawn] == drawn
    assert {fault.kind for case in drawn for fault in case.faults} == set(KINDS)
    assert any(case.standby for case in drawn)


def test_a_smaller_plan_has_less_of_something() -> None:
    case = Case.parse("workload=create standby=1 faults=stall:write:3:66,kill-after:write:5:1")
    smaller = [str(other) for other in case.smaller()]
    assert "workload=create standby=0 faults=stall:write:3:66,kill-after:write:5:1" in smaller
    assert "workload=create standby=1 faults=kill-after:write:5:1" in smaller
    assert "workload=create standby=1 faults=stall:write:3:7,kill-after:write:5:1" in smaller


@pytest.mark.timeout(900)
async def test_faults_change_no_end(laboratory: Laboratory, capsys: pytest.CaptureFixture[str]) -> None:
    seed = chosen_seed(SEED)
    summary = await run_all(laboratory, take(seed, len(WORKLOADS)))
    with capsys.disabled():
        print(f"\nAPI faults, {SEED_VARIABLE}={seed}: {summary}")
    told = [f"{failure.log}\n{failure}\n  {replay_command(failure.case)}" for failure in summary.failures]
    assert not summary.failures, "\n".join(told)
    assert sum(sum(result.struck.values()) for result in summary.results) >= len(WORKLOADS), "hardly a fault struck"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", SOME_BUGS)
async def test_a_planted_bug_is_caught(laboratory: Laboratory, bug: str) -> None:
    number, found = await find(laboratory, bug, SEED)
    assert found is not None, f"{number} plans did not show it"
