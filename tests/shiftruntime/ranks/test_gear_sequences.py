"""Real rank processes that shift at random compute what one rank computes: to the last bit in exact mode."""

import random
from pathlib import Path

import pytest
from helpers.rank_groups import rank_group, score_with_random_gears
from helpers.tiny_models import save_gemma3, save_llama

pytestmark = pytest.mark.ranks

SEED = 20_251_121
SHIFTS = 200
LENGTHS = (40, 33, 47, 21, 38, 44)


def sequences(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 131) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder, num_key_value_heads=2)
    return folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    save_gemma3(folder)
    return folder


@pytest.mark.timeout(300)  # four ranks on two cores take turns
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_exact_mode_is_bit_equal_to_one_rank_over_200_shifts(
    family: str, ranks: int, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(family)
    with rank_group(model, 1, dtype="float64", exact=True) as alone:
        expected = score_with_random_gears(alone, sequences(0), random.Random(0))
        everywhere = {}  # (sequence, position) -> drawn; several schedules end chunks at most positions
        for i in range(4):
            again = score_with_random_gears(alone, sequences(0), random.Random(i))
            assert again.logprobs == expected.logprobs
            for number, drawn in enumerate(again.drawn):
                everywhere |= {(number, position): value for position, value in drawn.items()}
    shifts, scored, drawn_again, schedule = 0, 0, 0, 0
    with rank_group(model, ranks, dtype="float64", exact=True) as group:
        assert (ranks == 4) == ("sp2tp2" in {gear.name for gear in group.gears}), "the mixed gear must take part"
        while shifts < SHIFTS:
            got = score_with_random_gears(group, sequences(0), random.Random(SEED + schedule))
            assert got.logprobs == expected.logprobs, f"ranks={ranks}, schedule seed {SEED + schedule}"
            for number, tokens in enumerate(got.drawn):
                for position, value in tokens.items():
                    assert value == everywhere.get((number, position), value), (ranks, schedule, number, position)
                    drawn_again += (number, position) in everywhere
            shifts += got.shifts
            scored += sum(map(len, got.logprobs))
            schedule += 1
            assert schedule < 60, f"only {shifts} shifts in {schedule} schedules"
    print(f"{family}, {ranks} ranks: {scored} log probabilities and {drawn_again} tokens equal over {shifts} shifts")
    assert drawn_again >= 500


def test_plain_mode_is_close_but_not_bit_equal(llama: Path) -> None:
    """The negative: without exact mode the same schedule differs, so the test above can fail."""
    with rank_group(llama, 1, dtype="float32", exact=False) as alone:
        expected = score_with_random_gears(alone, sequences(0), random.Random(0)).logprobs
    with rank_group(llama, 4, dtype="float32", exact=False) as group:
        got = score_with_random_gears(group, sequences(0), random.Random(SEED)).logprobs
    differences = [abs(a - b) for x, y in zip(got, expected, strict=True) for a, b in zip(x, y, strict=True)]
    assert 0 < max(differences) < 1e-3
