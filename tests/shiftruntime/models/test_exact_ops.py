"""Each exact operation gives the same bits for a row, column or K slice alone as within any larger operand."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.local_comm import LocalComm, run_ranks
from shiftruntime.config import Activation, ModelConfig
from shiftruntime.errors import StartupError
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.ops import Chunk
from shiftruntime.kernels.plain import PlainOps
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
OPS = ExactOps()


def tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype == torch.float32 else 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_columns_do_not_depend_on_rows_or_slices(seed: int, dtype: torch.dtype) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rows, K, N = rng.randint(1, 70), rng.randint(1, 200), rng.randint(2, 150)
    x, w = torch.randn(rows, K, dtype=dtype), torch.randn(N, K, dtype=dtype)
    whole = OPS.linear_columns(x, w)
    some = torch.tensor(sorted(rng.sample(range(rows), rng.randint(1, rows))))
    first = rng.randrange(N)
    assert torch.equal(OPS.linear_columns(x[some], w[first:]), whole[some, first:])
    torch.testing.assert_close(whole, x @ w.T, atol=tolerance(dtype), rtol=tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("ranks", "K"), [(2, 48), (3, 72), (4, 120), (6, 24), (8, 240), (4, 64), (2, 80)])
def test_rows_sharded_over_ranks_equal_one_rank(ranks: int, K: int, dtype: torch.dtype) -> None:
    torch.manual_seed(K)
    x, w = torch.randn(13, K, dtype=dtype), torch.randn(31, K, dtype=dtype)
    alone = OPS.linear_rows(x, w, LocalCommOfOne(), (0,))

    def work(comm: LocalComm) -> Tensor:
        share = slice(comm.rank * K // ranks, (comm.rank + 1) * K // ranks)
        return OPS.linear_rows(x[:, share].contiguous(), w[:, share], comm, tuple(range(ranks)))

    for result in run_ranks(ranks, work):
        assert torch.equal(result, alone)
    torch.testing.assert_close(alone, x @ w.T, atol=tolerance(dtype), rtol=tolerance(dtype))


class LocalCommOfOne:
    """Must not be asked."""

    def all_reduce(self, x: Tensor, group: tuple[int, ...]) -> Tensor:
        raise AssertionError("a group of one needs no collective")

    all_gather = all_reduce


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_do_not_depend_on_place(activation: Activation, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    gate, up = torch.randn(37, 61, dtype=dtype) * 5, torch.randn(37, 61, dtype=dtype)
    whole = OPS.gated(gate, up, activation)
    for row in range(0, 37, 5):
        for width in (1, 3, 17, 60):
            assert torch.equal(OPS.gated(gate[row, :width], up[row, :width], activation), whole[row, :width])
    torch.testing.assert_close(whole, PlainOps().gated(gate, up, activation), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_caps_do_not_depend_on_place(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    x = torch.randn(41, 53, dtype=dtype) * 40
    whole = OPS.soft_cap(x, 30.0)
    for row in range(0, 41, 4):
        for width in (1, 2, 19, 52):
            assert torch.equal(OPS.soft_cap(x[row, :width], 30.0), whole[row, :width])
    torch.testing.assert_close(whole, PlainOps().soft_cap(x, 30.0), atol=tolerance(dtype), rtol=tolerance(dtype))
    assert whole.abs().max() <= 30.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_and_rope_do_not_depend_on_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(19, 3, 26, dtype=dtype), torch.randn(26, dtype=dtype)
    frequencies = torch.rand(13, dtype=dtype)
    positions = torch.randperm(19)
    cos, sin = OPS.rope_tables(positions, frequencies)
    normed, turned = OPS.rms_norm(x, weight, 1e-6), OPS.rope(x, cos, sin)
    for row in range(19):
        one = slice(row, row + 1)
        assert torch.equal(OPS.rms_norm(x[one, :1], weight, 1e-6), normed[one, :1])
        assert torch.equal(OPS.rope(x[one], *OPS.rope_tables(positions[one], frequencies)), turned[one])
    plain = PlainOps()
    torch.testing.assert_close(normed, plain.rms_norm(x, weight, 1e-6), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned, plain.rope(x, *plain.rope_tables(positions, frequencies)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("window", "cap"), [(None, None), (7, None), (20, None), (None, 0.7), (7, 1.5)])
@pytest.mark.parametrize("seed", range(6))
def test_attention_does_not_depend_on_chunks_or_heads(
    seed: int, window: int | None, cap: float | None, dtype: torch.dtype
) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    length, kv_heads, group, dim = rng.randint(2, 60), rng.choice([1, 2, 3]), rng.choice([1, 2, 4]), 10
    table = tuple(rng.sample(range(20), 16))
    q = torch.randn(length, kv_heads * group, dim, dtype=dtype)
    keys, values = torch.randn(2, 20 * 4, kv_heads, dim, dtype=dtype)

    def attend(q: Tensor, keys: Tensor, values: Tensor, first: int) -> Tensor:
        plan = OPS.plan_attention((Chunk(0, len(q), first, table),), 4, (window,), dtype)
        return OPS.attention(q, keys, values, plan, window, 0.3, cap)

    whole = attend(q, keys, values, 0)
    cut = rng.randrange(1, length)
    assert torch.equal(attend(q[:cut], keys, values, 0), whole[:cut])
    assert torch.equal(attend(q[cut:], keys, values, cut), whole[cut:])
    assert torch.equal(attend(q[cut : cut + 1], keys, values, cut), whole[cut : cut + 1])
    head = rng.randrange(kv_heads)
    mine = slice(head * group, (head + 1) * group)
    assert torch.equal(attend(q[:, mine], keys[:, head : head + 1], values[:, head : head + 1], 0), whole[:, mine])
    plain = PlainOps()
    plan = plain.plan_attention((Chunk(0, length, 0, table),), 4, (window,), dtype)
    torch.testing.assert_close(
        whole, plain.attention(q, keys, values, plan, window, 0.3, cap), atol=tolerance(dtype), rtol=tolerance(dtype)
    )


def model(heads: int, head_dim: int, ffn: int) -> ModelConfig:
    return ModelConfig("Test", 48, 1, heads, heads, head_dim, ffn, 100, 64, 1e-6, 10_000.0)


def test_refuses_what_cannot_be_cut_into_leaves() -> None:
    OPS.check_model(model(24, 8, 96), 8)
    OPS.check_model(model(4, 256, 2048), 4)
    with pytest.raises(StartupError, match=r"FFN input K=100 .* 2 ranks") as refusal:
        OPS.check_model(model(24, 8, 100), 2)
    assert refusal.value.reason == "InvalidLayout"
    with pytest.raises(StartupError, match=r"attention output input K=1280"):
        OPS.check_model(model(5, 256, 2400), 5)
