"""Every sampling parameter on vocabulary shards, against dense arithmetic, transformers and other numbers of shards."""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from helpers.local_comm import Board, LocalComm, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftruntime.errors import RankError
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.plain import PlainOps
from shiftruntime.models.logit_edits import edited
from shiftruntime.models.sample import Penalties, Sample
from shiftruntime.models.sampling import Sampled, sample, token_logprobs
from shiftruntime.models.shards import FLOAT_DIGITS, ordered, select, unordered
from shiftruntime.models.truncation import MAX_CANDIDATES, floors
from torch import Tensor
from transformers.generation import logits_process as hf

RANKS = (1, 2, 3, 4, 8)
VOCABULARY = 301
EXACT = ExactOps()
ALONE = LocalComm(Board(1), 0)


def shard(logits: Tensor, comm: LocalComm) -> Tensor:
    """As the decoder leaves it: ids beyond the vocabulary at -inf."""
    whole = torch.nn.functional.pad(logits, (0, -logits.shape[1] % comm.size), value=float("-inf"))
    width = whole.shape[1] // comm.size
    return whole[:, comm.rank * width : (comm.rank + 1) * width].contiguous()


def on_ranks(logits: Tensor, samples: Sequence[Sample], ranks: int, ops: PlainOps | ExactOps = EXACT) -> list[Sampled]:
    return run_ranks(ranks, lambda comm: sample(shard(logits, comm), samples, comm, ops))


def int32(values: Sequence[int]) -> bytes:
    return array("i", values).tobytes()


def penalties(
    prompt: Sequence[int], output: Sequence[int], repetition: float = 1.0, presence: float = 0.0, frequency: float = 0.0
) -> Penalties:
    counts = Counter(output)
    ids, times = list(counts), list(counts.values())
    return Penalties(repetition, presence, frequency, int32(sorted(set(prompt))), int32(ids), int32(times))


def bits(allowed: Sequence[int]) -> bytes:
    packed = bytearray(max(allowed) // 8 + 1)
    for token in allowed:
        packed[token // 8] |= 1 << token % 8
    return bytes(packed)


def tied_logits(rows: int, seed: int) -> Tensor:
    """bfloat16 has few values, so that many logits are equal."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, VOCABULARY, generator=generator) * 3).to(torch.bfloat16).float()


def random_sample(rng: random.Random) -> Sample:
    ids = range(VOCABULARY)
    said = rng.choices(ids, k=rng.randint(0, 30))
    return Sample(
        temperature=rng.choice([0.0, 0.3, 1.0, 2.5]),
        top_p=rng.choice([1.0, 0.95, 0.5, 0.01]),
        seed=rng.randrange(2**63),
        position=rng.randrange(10_000),
        logprob=rng.random() < 0.5,
        top_logprobs=rng.choice([0, 0, 1, 5, 20]),
        top_k=rng.choice([0, 0, 1, 5, 64, VOCABULARY + 5, MAX_CANDIDATES + 1]),
        min_p=rng.choice([0.0, 0.0, 0.05, 1.0]),
        bias=tuple((i, rng.uniform(-5, 5)) for i in rng.sample(ids, rng.choice([0, 0, 7]))),
        banned=tuple(rng.sample(ids, rng.choice([0, 0, 3]))),
        allowed=rng.choice([b"", bits(rng.sample(ids, 150))]),
        penalties=rng.choice([None, penalties(rng.choices(ids, k=40), said, 1.3, 0.2, 0.1)]),
    )


def dense_edits(logits: Tensor, s: Sample) -> Tensor:
    """One row, [vocabulary] float64."""
    out = logits.double().clone()
    for token in range(len(out)):
        if s.allowed and not (token // 8 < len(s.allowed) and s.allowed[token // 8] >> token % 8 & 1):
            out[token] = float("-inf")
    for token in s.banned:
        out[token] = float("-inf")
    for token, bias in s.bias:
        out[token] += bias
    if s.penalties is not None:
        p = s.penalties
        said = array("i", p.output_ids).tolist()
        for token in {*array("i", p.prompt_ids).tolist(), *said}:
            out[token] = out[token] / p.repetition if out[token] > 0 else out[token] * p.repetition
        for token, count in zip(said, array("i", p.output_counts).tolist(), strict=True):
            out[token] -= p.frequency * count
            out[token] -= p.presence
    return out


def dense_kept(logits: Tensor, s: Sample) -> set[int]:
    """Tokens that may be drawn: edited logits of one row through min-p, top-k and top-p by sorting."""
    scaled = logits / s.temperature
    if s.min_p > 0:
        scaled = scaled.masked_fill(scaled.exp() < s.min_p * scaled.exp().max(), float("-inf"))
    if 0 < s.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.sort(descending=True).values[s.top_k - 1], float("-inf"))
    if s.top_p < 1:
        probabilities = scaled.softmax(-1).sort(descending=True).values
        last = probabilities[int((probabilities.cumsum(0) < s.top_p * (1 - 1e-12)).sum())]
        scaled = scaled.masked_fill(scaled.softmax(-1) < last, float("-inf"))
    return set(scaled.isfinite().nonzero()[:, 0].tolist())


@pytest.mark.parametrize("seed", range(6))
def test_no_number_of_shards_changes_a_bit(seed: int) -> None:
    rng = random.Random(seed)
    logits, samples = tied_logits(16, seed), [random_sample(rng) for _ in range(16)]
    expected = on_ranks(logits, samples, 1)[0]
    for ranks in RANKS:
        for drawn in on_ranks(logits, samples, ranks):
            assert torch.equal(drawn.tokens, expected.tokens)
            assert torch.equal(drawn.logprobs.nan_to_num(), expected.logprobs.nan_to_num())
            assert drawn.likeliest == expected.likeliest


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_change_no_bit(seed: int) -> None:
    rng = random.Random(100 + seed)
    logits, samples = tied_logits(10, seed), [random_sample(rng) for _ in range(10)]
    together = on_ranks(logits, samples, 2)[0]
    for i, s in enumerate(samples):
        alone = on_ranks(logits[i : i + 1], [s], 3)[0]
        assert int(alone.tokens[0]) == int(together.tokens[i])
        assert torch.equal(alone.logprobs.nan_to_num()[0], together.logprobs.nan_to_num()[i])
        assert alone.likeliest[0] == together.likeliest[i]


@pytest.mark.parametrize("seed", range(8))
def test_edits_are_those_of_dense_arithmetic(seed: int) -> None:
    rng = random.Random(seed)
    logits, samples = tied_logits(8, seed), [random_sample(rng) for _ in range(8)]
    expected = torch.stack([dense_edits(row, s) for row, s in zip(logits, samples, strict=True)])
    for ranks in RANKS:
        parts = run_ranks(ranks, lambda c: edited(shard(logits, c), samples, c.rank * shard(logits, c).shape[1]))
        assert torch.equal(torch.cat(parts, 1)[:, :VOCABULARY], expected)


@pytest.mark.parametrize("seed", range(10))
def test_cuts_keep_exactly_what_sorting_keeps(seed: int) -> None:
    rng = random.Random(seed)
    samples = [s for s in (random_sample(rng) for _ in range(60)) if s.cuts]
    logits = torch.stack([dense_edits(r, s) for r, s in zip(tied_logits(len(samples), seed), samples, strict=True)])
    scaled = logits / torch.tensor([s.temperature for s in samples], dtype=torch.float64)[:, None]
    for ranks in (1, 3):
        for floor in run_ranks(ranks, lambda c: floors(shard(scaled, c), scaled.amax(1), samples, c, EXACT)):
            for row, least, s, whole in zip(scaled, floor, samples, logits, strict=True):
                kept = set(((row >= least) & row.isfinite()).nonzero()[:, 0].tolist())
                assert kept == dense_kept(whole, s), s


@pytest.mark.parametrize("ranks", [1, 3])
def test_cuts_keep_what_transformers_keeps(ranks: int) -> None:
    """Without ties: there our top-p keeps all equals, and theirs those that sorting puts first."""
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(1)).double() * 3
    ids = torch.zeros((4, 1), dtype=torch.int64)
    cases = [
        (Sample(0.7, top_k=7), [hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(7)]),
        (Sample(1.5, top_p=0.8), [hf.TemperatureLogitsWarper(1.5), hf.TopPLogitsWarper(0.8)]),
        (Sample(1.5, min_p=0.1), [hf.TemperatureLogitsWarper(1.5), hf.MinPLogitsWarper(0.1)]),
        (Sample(1.0, top_k=20, top_p=0.9), [hf.TopKLogitsWarper(20), hf.TopPLogitsWarper(0.9)]),
        (Sample(1.0, top_p=0.9, min_p=0.02), [hf.MinPLogitsWarper(0.02), hf.TopPLogitsWarper(0.9)]),
    ]
    for s, processors in cases:
        expected = logits
        for processor in processors:
            expected = processor(ids, expected)
        scaled = logits / s.temperature
        floor = run_ranks(ranks, lambda c: floors(shard(scaled, c), scaled.amax(1), [s] * 4, c, EXACT))[0]  # noqa: B023
        assert torch.equal(scaled >= floor[:, None], expected.isfinite()), s


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits, tokens = torch.randn(1, VOCABULARY) * 4, random.Random(2).choices(range(VOCABULARY), k=60)
    expected = hf.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), logits.double())
    s = Sample(penalties=penalties(tokens[:40], tokens[40:], repetition=1.3))
    assert torch.equal(edited(logits, [s], 0), expected)


@pytest.mark.parametrize(
    "s",
    [
        Sample(0.8),
        Sample(1.3, top_k=4),
        Sample(1.0, top_p=0.7),
        Sample(2.0, min_p=0.3),
        Sample(1.0, top_k=6, top_p=0.9, bias=((2, 1.5),), penalties=penalties([4], [5, 5], 1.5, 0.2, 0.1)),
    ],
    ids=["temperature", "top-k", "top-p", "min-p", "all"],
)
def test_frequencies_follow_the_cut_distribution(s: Sample) -> None:
    """Chi squared over 4,000 draws of a fixed seed."""
    logits, rows = torch.tensor([1.0, 2.0, 0.0, -1.0, 3.0, 2.5, 0.7, 1.9]), 4_000
    whole = dense_edits(logits, s)
    kept = sorted(dense_kept(whole, s))
    cut = torch.full_like(whole, float("-inf"))
    cut[kept] = whole[kept]
    expected = (cut / s.temperature).softmax(-1)[kept] * rows
    samples = [
        Sample(s.temperature, s.top_p, 17, i, top_k=s.top_k, min_p=s.min_p, bias=s.bias, penalties=s.penalties)
        for i in range(rows)
    ]
    tokens = on_ranks(logits.expand(rows, -1).contiguous(), samples, 2, PlainOps())[0].tokens
    observed = torch.bincount(tokens, minlength=8)
    assert int(observed[kept].sum()) == rows
    chi_squared = float(((observed[kept] - expected) ** 2 / expected).sum())
    degrees = len(kept) - 1
    assert chi_squared < degrees + 4 * math.sqrt(2 * degrees) + 6, (chi_squared, degrees)


def test_likeliest_are_sorted_and_equals_come_by_id() -> None:
    logits = torch.zeros(2, 40)
    logits[0, [7, 39, 13]] = 2.0
    logits[1, 5] = 1.0
    for ranks in RANKS:
        drawn = on_ranks(logits, [Sample(top_logprobs=5), Sample(top_logprobs=3)], ranks)[0]
        assert [found for found, _ in drawn.likeliest] == [(7, 13, 39, 0, 1), (5, 0, 1)]
        for row, (found, values) in enumerate(drawn.likeliest):
            expected = logits[row].double().log_softmax(-1)[list(found)]
            torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, atol=1e-9, rtol=0)


def test_a_small_vocabulary_has_no_more_alternatives_than_tokens() -> None:
    (found, values), = on_ranks(torch.zeros(1, 5), [Sample(top_logprobs=20)], 4)[0].likeliest  # fmt: skip
    assert found == (0, 1, 2, 3, 4)
    assert values == pytest.approx([-math.log(5)] * 5)


def test_logprobs_are_of_the_model_not_of_what_was_drawn_from() -> None:
    logits = tied_logits(1, 3)
    s = Sample(0.3, 0.5, 1, 1, True, top_k=3, bias=((5, 9.0),), penalties=penalties([1], [2], 1.5))
    drawn = on_ranks(logits, [s], 2)[0]
    assert float(drawn.logprobs[0]) == pytest.approx(float(logits.double().log_softmax(-1)[0, drawn.tokens[0]]))


@pytest.mark.parametrize(("repetition", "best"), [(1e-30, 2), (1e30, 3)])
@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_the_hardest_edits_that_the_engine_admits_leave_numbers(
    repetition: float, best: int, temperature: float
) -> None:
    logits = torch.tensor([[-3e38, -1.0, 3e38, 2.0]])
    s = Sample(temperature=temperature, top_p=0.9, bias=((2, 1e30),), penalties=penalties([2], [2], repetition, 1e30))
    assert sample(logits, [s], ALONE, EXACT).tokens.tolist() == [best]


def test_greedy_obeys_edits_and_ignores_cuts() -> None:
    logits = torch.zeros(4, 20)
    logits[:, 3], logits[:, 8] = 5.0, 4.0
    samples = [
        Sample(top_k=1, top_p=0.1, min_p=1.0),
        Sample(banned=(3,)),
        Sample(bias=((12, 9.0),)),
        Sample(allowed=bits([1, 8])),
    ]
    for ranks in RANKS:
        assert on_ranks(logits, samples, ranks)[0].tokens.tolist() == [3, 8, 12, 8]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "s", [Sample(), Sample(1.0), Sample(1.0, 0.9, top_k=5), Sample(banned=(2,)), Sample(allowed=bits([1]))]
)
def test_logits_that_are_no_numbers_fail_by_row_on_all_ranks(bad: float, s: Sample) -> None:
    """Also where a ban or a mask would hide them."""
    logits = torch.zeros(3, 20)
    logits[1, 2] = bad

    def work(comm: LocalComm) -> str:
        with pytest.raises(RankError, match="row 1 ") as failed:
            sample(shard(logits, comm), [Sample(), s, Sample()], comm, EXACT)
        return str(failed.value)

    assert len(set(run_ranks(4, work))) == 1


def test_prompt_logits_that_are_no_numbers_fail_by_row() -> None:
    logits = torch.zeros(3, 20)
    logits[2, 7] = float("nan")
    with pytest.raises(RankError, match="row 2 "):
        token_logprobs(logits, torch.tensor([1, 2, 3]), ALONE, EXACT)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_token_to_choose_fails_by_row(temperature: float) -> None:
    samples = [Sample(temperature), Sample(temperature, banned=tuple(range(20)))]
    with pytest.raises(RankError, match=r"row 1 .*banned or masked"):
        on_ranks(torch.zeros(2, 20), samples, 2)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=40),
    st.sampled_from([1e-4, 0.5, 1.0, 100.0]),
    st.floats(1e-6, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 50),
    st.integers(0, 2**63 - 1),
)
def test_any_finite_logits_yield_a_token_that_sorting_keeps(
    values: list[float], temperature: float, top_p: float, min_p: float, top_k: int, seed: int
) -> None:
    s = Sample(temperature, top_p, seed, 1, True, top_logprobs=3, top_k=top_k, min_p=min_p)
    logits = torch.tensor([values])
    first = sample(logits, [s], ALONE, EXACT)
    token = int(first.tokens[0])
    assert 0 <= token < len(values)
    if top_k:
        assert sum(value > values[token] for value in values) < top_k
    three = on_ranks(logits, [s], 3)[0]
    assert int(three.tokens[0]) == token
    assert first.likeliest == three.likeliest


@settings(deadline=None)
@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 8), st.integers(0, 2**32))
def test_only_allowed_ids_come(allowed: set[int], ranks: int, seed: int) -> None:
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(seed))
    samples = [Sample(allowed=bits(sorted(allowed))), Sample(5.0, seed=seed, allowed=bits(sorted(allowed)))]
    greedy, noisy = on_ranks(logits, samples, ranks, PlainOps())[0].tokens.tolist()
    assert greedy == max(sorted(allowed), key=lambda token: float(logits[0, token]))
    assert noisy in allowed


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=30), st.data())
def test_selection_finds_the_kth_largest(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    keys = ordered(torch.tensor([values], dtype=torch.float64))
    found = unordered(select(keys, None, torch.tensor([k]), FLOAT_DIGITS, ALONE))
    assert float(found[0]) == sorted(values, reverse=True)[k - 1]
