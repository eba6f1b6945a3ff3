"""Sampling on vocabulary shards: the same tokens on all ranks and for every number of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from helpers.local_comm import LocalComm, run_ranks
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.plain import PlainOps
from shiftruntime.models.sample import Sample
from shiftruntime.models.sampling import sample, token_logprobs
from torch import Tensor

RANKS = (1, 2, 3, 4, 8)
PLAIN = PlainOps()


def padded(logits: Tensor, ranks: int) -> Tensor:
    """As the decoder leaves it: ids beyond the vocabulary at -inf."""
    return torch.nn.functional.pad(logits, (0, -logits.shape[1] % ranks), value=float("-inf"))


def on_ranks(
    logits: Tensor, params: Sequence[Sample], ranks: int, ops: PlainOps | ExactOps = PLAIN
) -> list[tuple[Tensor, Tensor]]:
    whole = padded(logits, ranks)
    width = whole.shape[1] // ranks

    def work(comm: LocalComm) -> tuple[Tensor, Tensor]:
        drawn = sample(whole[:, comm.rank * width : (comm.rank + 1) * width].contiguous(), params, comm, ops)
        return drawn.tokens, drawn.logprobs

    return run_ranks(ranks, work)


def random_params(rng: random.Random, rows: int) -> list[Sample]:
    return [
        Sample(
            rng.choice([0.0, 0.3, 1.0, 2.5]),
            rng.choice([1.0, 0.95, 0.5, 0.01]),
            rng.randrange(-(2**63), 2**64),
            rng.randrange(10_000),
            logprob=True,
        )
        for _ in range(rows)
    ]


@pytest.mark.parametrize("ops", [PLAIN, ExactOps()], ids=lambda ops: ops.name)
@pytest.mark.parametrize("seed", range(5))
def test_all_ranks_and_all_sharded_alike(seed: int, ops: PlainOps | ExactOps) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    logits = torch.randn(12, rng.randint(9, 700)) * rng.choice([0.1, 1, 10])
    params = random_params(rng, 12)
    tokens, logprobs = on_ranks(logits, params, 1, ops)[0]
    assert int(tokens.max()) < logits.shape[1]
    expected = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, atol=1e-9, rtol=1e-9)
    for ranks in RANKS:
        for other_tokens, other_logprobs in on_ranks(logits, params, ranks, ops):
            assert torch.equal(other_tokens, tokens)
            assert torch.allclose(other_logprobs, logprobs, atol=1e-12, rtol=0)


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = torch.zeros(3, 40)
    logits[1, [7, 13, 39]] = 2.0
    logits[2, 39] = 1.0
    for ranks in RANKS:
        assert on_ranks(logits, [Sample()] * 3, ranks)[0][0].tolist() == [0, 7, 39]


def nucleus(logits: Tensor, temperature: float, top_p: float) -> set[int]:
    """By sorting: the fewest likeliest tokens that hold top_p of the mass."""
    probabilities, ids = (logits.double() / temperature).softmax(-1).sort(descending=True)
    count = int((probabilities.cumsum(0) < top_p).sum()) + 1
    return set(ids[:count].tolist())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.5, 0.6), (2.0, 0.3), (1.0, 0.999), (1.0, 1e-9)])
def test_top_p_keeps_exactly_the_nucleus(temperature: float, top_p: float) -> None:
    torch.manual_seed(3)
    logits = torch.randn(24) * 2
    allowed = nucleus(logits, temperature, top_p)
    rows = 60 * len(allowed)
    params = [Sample(temperature, top_p, 5, position, logprob=False) for position in range(rows)]
    tokens, logprobs = on_ranks(logits.expand(rows, -1).contiguous(), params, 2)[0]
    likely = {token for token in allowed if (logits / temperature).softmax(-1)[token] > 0.05}
    assert likely <= set(tokens.tolist()) <= allowed
    assert logprobs.isnan().all()


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([1.0, 2.0, 0.0, -1.0, 3.0, 2.5])
    rows = 20_000
    params = [Sample(0.8, 1.0, 17, position, logprob=False) for position in range(rows)]
    tokens, _ = on_ranks(logits.expand(rows, -1).contiguous(), params, 2)[0]
    expected = (logits / 0.8).softmax(-1) * rows
    observed = torch.bincount(tokens, minlength=6)
    assert float(((observed - expected) ** 2 / expected).sum()) < 25  # chi squared, 5 degrees: p < 0.0002


def test_seed_and_position_decide_and_neighbours_do_not() -> None:
    torch.manual_seed(4)
    logits = torch.randn(1, 500)
    row = Sample(1.0, 0.9, 3, 12)
    alone = on_ranks(logits, [row], 2)[0][0]
    among = on_ranks(torch.cat([torch.randn(3, 500), logits]), [*random_params(random.Random(0), 3), row], 2)[0][0]
    assert int(among[3]) == int(alone[0])
    others = [Sample(1.0, 1.0, seed, position) for seed in range(8) for position in range(8)]
    assert len(set(on_ranks(logits.expand(64, -1).contiguous(), others, 1)[0][0].tolist())) > 30


def test_nothing_to_sample() -> None:
    tokens, logprobs = on_ranks(torch.zeros(0, 10), [], 2)[0]
    assert tokens.shape == logprobs.shape == (0,)


def test_teacher_forced_logprobs() -> None:
    torch.manual_seed(5)
    logits, ids = torch.randn(6, 50), torch.tensor([0, 49, 25, 24, 12, 37])

    def work(comm: LocalComm) -> Tensor:
        return token_logprobs(logits[:, comm.rank * 25 : comm.rank * 25 + 25], ids, comm, PLAIN)

    expected = logits.double().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    for result in run_ranks(2, work):
        torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-9)
