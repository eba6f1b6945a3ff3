"""The fuzz finds what it is for: bugs planted on purpose, few cases each, and shrinks what it finds.

| bug | what is wrong | where |
|---|---|---|
| swapped-ranks | two members of an all-to-all are swapped | exchange |
| head-order | mixed gears number their ranks tensor first; invisible when S = 1 or T = 1 | layout |
| wrong-kv-head | replicated kv heads are dealt out in turn instead of in runs | exchange |
| unbound-cache | the tp gear has a KV cache of its own | decoder |
| vocabulary | sequence gears cut the LM head in another order than its logits are put together | decoder |
| pad | a padded step takes logits one row early | decoder |
| stale-table | a plan keeps the block table from before a preemption | engine |
| no-recompute | a preempted request goes on without its KV | scheduler |
| early-release | blocks of an aborted request are free while the step in flight reads them | scheduler |
| wrong-prefix | a prefix hit by the tokens of a block, whatever came before | prefix cache |
| tenants | a prefix hit across tenants | prefix cache |
| window | sliding layers give back a block that the next token still sees | block tables |
| noise | the noise of a token depends on its place in the batch | engine, sampling |
| history | penalties forget the output so far | engine, sampling |
| wrong-place | a step ahead goes on with the token that was drawn for a neighbour | engine, ranks |
| experts | rows come back from the experts of other ranks in another order | mixture of experts |
| sum-order | tensor sums in another order: the last bits | collectives |
| fast-gear | sequence gears use the fast arithmetic: the last bits | arithmetic |
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.gear_fuzz.case import Case
from helpers.gear_fuzz.check import Failure, check
from helpers.gear_fuzz.planted import BUGS, Bug
from helpers.gear_fuzz.shrink import shrink

MOST_CASES = 80
SHRINK_TRIES = 15


def test_the_table_names_every_bug() -> None:
    assert __doc__ is not None
    assert [line.split()[1] for line in __doc__.splitlines() if line.startswith("| ")][1:] == [bug.name for bug in BUGS]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught_and_shrinks(bug: Bug) -> None:
    torch.set_num_threads(1)
    found = next(failures(bug), None)
    assert found is not None, f"{MOST_CASES} cases did not show that {bug.story}"
    small = shrink(found, lambda case: check(case, bug.wiring), SHRINK_TRIES)
    assert size(small.case) < size(found.case)
    again = check(Case.parse(str(small.case)), bug.wiring)
    assert str(again) == str(small), "the line does not make the same failure again"
    assert not isinstance(check(small.case), Failure), "the product fails as well"


def failures(bug: Bug) -> Iterator[Failure]:
    outcomes = (check(Case.draw(seed, bug.ranks, bug.family), bug.wiring) for seed in range(MOST_CASES))
    return (outcome for outcome in outcomes if isinstance(outcome, Failure))


def size(case: Case) -> int:
    return len(case.requests) * len(case.gears) * case.prompt * case.output * case.steps
