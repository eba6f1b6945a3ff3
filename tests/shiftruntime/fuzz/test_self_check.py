"""The self-check at start-up sees the bugs that change no shape, in plain arithmetic, and passes what is right."""

from __future__ import annotations

import math

import pytest
from helpers.gear_fuzz import tiny
from helpers.gear_fuzz.check import PRODUCT, Wiring
from helpers.gear_fuzz.planted import BUGS
from helpers.gear_fuzz.ranks import logical_ranks
from shiftcore.layout import Gear, allowed_gears
from shiftruntime.engine.messages import SelfCheckState
from shiftruntime.engine.self_check import self_check
from shiftruntime.worker.messages import ChunkPlan

BLOCK_SIZE = 4
VOCABULARY = 131
# Those of the planted bugs that are in what the ranks compute; the others need traffic. ("head-order" ends the step of
# plain ranks with an error, since they wait for each other in other groups.)
WIRINGS = {bug.name: bug for bug in BUGS if bug.name in (
    "swapped-ranks", "wrong-kv-head", "unbound-cache", "vocabulary", "pad",
)}  # fmt: skip


def checked(ranks: int, dtype: str, wiring: Wiring) -> SelfCheckState:
    weights = tiny.load("llama", ranks, 2 if ranks % 3 else 3, VOCABULARY, dtype, ranks)
    parts = (weights, ranks, BLOCK_SIZE, 16, wiring.wrap_comm, wiring.alter_decoder)
    with logical_ranks(*parts, exact=False) as group:
        return self_check(
            lambda gear, chunk: group.run(gear, (chunk,)).target_logprobs, allowed_gears(Gear(ranks, 1)),
            dtype=dtype, exact=False, vocab_size=VOCABULARY, max_model_len=64, block_size=BLOCK_SIZE,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
def test_what_is_right_passes(ranks: int, dtype: str) -> None:
    state = checked(ranks, dtype, PRODUCT)
    assert state.passed, state.message


@pytest.mark.parametrize("name", WIRINGS)
def test_a_planted_bug_fails_the_self_check(name: str) -> None:
    bug = WIRINGS[name]
    state = checked(bug.ranks, "float32", bug.wiring)
    assert not state.passed, state.message
    assert "disagree" in state.message


def scores(worst_gear: Gear, wrong: float) -> SelfCheckState:
    """Gears that agree to the bit, but for one that is off by so much everywhere."""

    def score(gear: Gear, chunk: ChunkPlan) -> tuple[float, ...]:
        return tuple(-1.0 - (wrong if gear == worst_gear else 0.0) for _ in chunk.targets)

    return self_check(
        score, allowed_gears(Gear(8, 1)), dtype="bfloat16", exact=False, vocab_size=VOCABULARY, max_model_len=64,
        block_size=BLOCK_SIZE,
    )  # fmt: skip


@pytest.mark.parametrize(("wrong", "passed"), [(0.28, True), (1.1, False)])
def test_the_tolerances_stand_between_rounding_and_the_smallest_bug(wrong: float, passed: bool) -> None:
    """As measured on Gemma 3 270M in bfloat16: see docs/LOG.md."""
    assert scores(Gear(1, 8), wrong).passed is passed


@pytest.mark.parametrize("gear", allowed_gears(Gear(8, 1)), ids=lambda gear: gear.name)
def test_gears_that_agree_do_not_hide_one_that_does_not(gear: Gear) -> None:
    assert not scores(gear, 1.5).passed


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_number_fails(wrong: float) -> None:
    assert not scores(Gear(1, 8), wrong).passed
