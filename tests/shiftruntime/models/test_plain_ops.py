"""The fast arithmetic where it takes a path of its own: attention whose scores are bent by a soft cap."""

from __future__ import annotations

import pytest
import torch
from shiftruntime.kernels.ops import Chunk, token_slots, write_slots
from shiftruntime.kernels.plain import PlainOps
from torch import Tensor

OPS = PlainOps()
CHUNKS = (Chunk(0, 7, 5, (3, 1, 0)), Chunk(7, 1, 9, (2, 5, 4)), Chunk(8, 1, 0, (6,)))  # a prefill and two decodes


def attend(dtype: torch.dtype, window: int | None, soft_cap: float | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(9, 6, 8, generator=generator).to(dtype)
    keys, values = torch.randn(2, 28, 3, 8, generator=generator).to(dtype)
    plan = OPS.plan_attention(CHUNKS, 4, (window,), dtype)
    return OPS.attention(q, keys, values, plan, window, 0.35, soft_cap)


@pytest.mark.parametrize("first", range(11))
def test_slots_from_any_position_are_those_of_the_table(first: int) -> None:
    chunk = Chunk(0, 1, 10, (3, 9, 7))
    expected = [chunk.block_table[position // 4] * 4 + position % 4 for position in range(first, 11)]
    assert token_slots(chunk, 4, first).tolist() == expected


def test_blocks_behind_a_window_give_no_slots_that_anybody_sees() -> None:
    chunk = Chunk(0, 1, 10, (-1, -1, 7))
    assert write_slots((chunk,), 4).tolist() == [30]
    assert token_slots(chunk, 4, is_masked=True).tolist() == [30] * 8 + [28, 29, 30]
    with pytest.raises(AssertionError, match="was given back"):
        token_slots(chunk, 4, 7)


@pytest.mark.parametrize("window", [None, 4])
def test_a_cap_far_above_the_scores_changes_nothing(window: int | None) -> None:
    torch.testing.assert_close(attend(torch.float64, window, 1e6), attend(torch.float64, window, None))


@pytest.mark.parametrize("window", [None, 4])
def test_a_cap_far_below_the_scores_makes_them_equal(window: int | None) -> None:
    """Each row is then the mean of the values that it sees."""
    out = attend(torch.float64, window, 1e-9)
    generator = torch.Generator().manual_seed(0)
    torch.randn(9, 6, 8, generator=generator)
    _, values = torch.randn(2, 28, 3, 8, generator=generator).double()
    row, chunk = 3, CHUNKS[0]
    position = chunk.context_len + row
    seen = range(0 if window is None else position + 1 - window, position + 1)
    slots = [chunk.block_table[p // 4] * 4 + p % 4 for p in seen]
    torch.testing.assert_close(out[row], values[slots].mean(0).repeat_interleave(2, 0))


@pytest.mark.parametrize("window", [None, 4])
def test_bfloat16_rounds_the_result_and_not_the_scores(window: int | None) -> None:
    mine, wide = attend(torch.bfloat16, window, 0.5), attend(torch.float32, window, 0.5)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine.float(), wide, atol=0.03, rtol=0.03)
