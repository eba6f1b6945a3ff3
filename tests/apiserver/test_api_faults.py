"""Whatever happens between the operator and the API server, work ends as it ends without faults.

Reduced here; ``make campaign`` runs the full count. A plan that fails is made smaller and prints the line from which it
can be run again: ``python tests/campaign.py --replay 'LINE'``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.api_faults import quiet
from helpers.api_faults.campaigns import Tried, judged, try_bug
from helpers.api_faults.case import KINDS, Case
from helpers.api_faults.check import Laboratory, Result
from helpers.api_faults.many import replay_command, run_all, take
from helpers.api_faults.planted import BUGS, HEALED
from helpers.api_faults.workloads import WORKLOADS
from helpers.campaign_outcome import SEED_VARIABLE, chosen_seed
from helpers.control_plane.audit import AuditLog
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import ControlPlane
from helpers.control_plane.waiting import wait_for
from shiftruntime.engine.liveness import process_state

SEED = 20_261_121
# Of the planted bugs those that the first plans show; the campaign has all of them.
SOME_BUGS = ("deletes-too-much",)  # the others take longer: some run to their deadline
PLANS_PER_BUG = 4

_OPERATOR = """
import sys
from pathlib import Path
from helpers.api_faults.launcher import Launched

launched = Launched(Path(sys.argv[1]), "default", "orphan", Path(sys.argv[2]))
launched.start()
print(launched.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def good() -> dict[str, Result]:
    """How workloads end without faults."""
    return {}


@pytest.fixture
async def laboratory(
    plane: ControlPlane, kubelet: Kubelet, tmp_path: Path, good: dict[str, Result]
) -> AsyncIterator[Laboratory]:
    made = Laboratory(plane, kubelet, tmp_path, good)
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


def test_a_bug_that_is_known_to_be_healed_is_no_failure_of_the_campaign() -> None:
    """Three that no plan is sure to show made every campaign end with 1."""
    shown = Result(Case.parse("workload=create standby=0 faults="), 1.0, {}, Counter(), Counter(), "", ("it differs",))
    assert set(HEALED) < set(BUGS)
    missed = [Tried(bug, 24, ()) for bug in BUGS]
    assert judged(missed).bad == len(BUGS) - len(HEALED)
    assert judged([Tried(bug, 24, ()) for bug in HEALED]).bad == 0
    caught = judged([Tried(bug, 8, (shown,)) for bug in BUGS])
    assert (caught.bad, caught.injected) == (0, len(BUGS))
    noted = [note for note in caught.notes if "and was caught" in note]
    assert [note.split()[0] for note in noted] == [bug for bug in BUGS if bug in HEALED]


def test_a_run_is_over_when_nothing_was_written_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = tmp_path / "audit.log", [100.0]
    log.write_text("")
    monkeypatch.setattr(quiet.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(quiet, "load", lambda: 1.0)
    watched = quiet.Quiet(AuditLog(log), "plan-1", "operator")

    def after(seconds: float, verb: str, resource: str = "pods", namespace: str = "plan-1") -> str:
        now[0] += seconds
        event = {
            "user": {"username": "operator"}, "verb": verb, "stageTimestamp": "", "requestURI": "/",
            "objectRef": {"namespace": namespace, "resource": resource}, "responseStatus": {"code": 200},
        }  # fmt: skip
        with log.open("a") as file:
            file.write(json.dumps(event) + "\n")
        return watched.over()

    assert not after(10.0, "patch")
    assert not after(10.0, "patch"), "10 s since the last write"
    assert not after(1.0, "update", "leases")
    assert "no write for 22 s" in after(21.0, "patch", namespace="plan-2"), "what others do is no work on this"
    assert not after(0.1, "patch")
    assert not any(after(0.1, "get", "leases") for _ in range(6))
    assert "no write" in after(0.1, "get", "leases"), "the operator went round so often and had nothing to do"
    assert "still at work" in after(5.0, "patch")


def test_half_a_line_of_the_audit_log_is_read_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_bytes(b"one\nhalf")
    audit = AuditLog(log)
    assert audit.complete() == 4
    log.write_bytes(b"x" * 200_000)
    assert audit.complete() == 0
    log.write_bytes(b"one\n" + b"x" * 200_000 + b"\n")
    assert audit.complete() == 200_005


def test_an_operator_ends_with_the_test_that_started_it(plane: ControlPlane, tmp_path: Path) -> None:
    """Killed with the process that asked for it, not with the one that it was forked from."""
    arguments = [str(plane.kubeconfig("operator", "system:masters")), str(tmp_path / "operator.log")]
    helpers = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {helpers!r}){_OPERATOR}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        operator = int(parent.stdout.readline())
        assert process_state(operator) not in "ZX"
        parent.kill()
    wait_for("the operator's end", lambda: process_state(operator) in "ZX")


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
    tried = await try_bug(laboratory, bug, SEED, few=1, most=PLANS_PER_BUG)
    assert tried.caught, tried
