"""The fast arithmetic where it takes a path of its own: decodes in groups, and scores that are bent by a soft cap."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from shiftruntime.kernels import plain
from shiftruntime.kernels.exact import ExactOps
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


def decodes(contexts: Sequence[int], block_size: int) -> tuple[tuple[Chunk, ...], int]:
    """A decode per context, and the blocks that hold them all."""
    chunks, first = [], 0
    for row, context in enumerate(contexts):
        blocks = -(-(context + 1) // block_size)
        chunks.append(Chunk(row, 1, context, tuple(range(first, first + blocks))))
        first += blocks
    return tuple(chunks), first


@pytest.mark.parametrize("contexts", [(64,) * 63 + (8191,), (0, 63, 64, 100, 1000, 1, 8191) * 3, tuple(range(200))])
@pytest.mark.parametrize("window", [None, 128])
def test_one_long_context_in_a_step_does_not_pad_the_short_ones(contexts: Sequence[int], window: int | None) -> None:
    """Found in review: 63 short decodes beside one of 8,192 tokens took 580 times as long as 64 short ones."""
    chunks, _ = decodes(contexts, 16)
    gathered = sum(
        group.slots.numel() for group in OPS.plan_attention(chunks, 16, (window,), torch.float32).decodes[window]
    )
    seen = sum(min(context + 1, window or context + 1) for context in contexts)
    assert seen <= gathered <= 2 * seen + 64 * len(contexts)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 33])
def test_decodes_of_any_context_give_what_the_exact_arithmetic_gives(
    window: int | None, soft_cap: float | None
) -> None:
    """Contexts on both sides of every border between groups, in no order."""
    chunks, blocks = decodes((300, 0, 63, 64, 65, 127, 128, 129, 5, 255, 256, 2, 300), 4)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(len(chunks), 6, 8, generator=generator).double()
    keys, values = torch.randn(2, blocks * 4, 3, 8, generator=generator).double()
    mine, twin = (
        ops.attention(q, keys, values, ops.plan_attention(chunks, 4, (window,), q.dtype), window, 0.35, soft_cap)
        for ops in (OPS, ExactOps())
    )
    torch.testing.assert_close(mine, twin)


@pytest.mark.parametrize("window", [None, 4])
def test_a_bound_on_what_is_held_at_once_changes_nothing(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attend(torch.float64, window, 2.0)
    monkeypatch.setattr(plain, "_GATHERED_SLOTS", 1)
    monkeypatch.setattr(plain, "_BENT_SCORES", 100)  # two rows of the prefill
    assert len(OPS.plan_attention(CHUNKS, 4, (window,), torch.float64).decodes[window]) == 2
    torch.testing.assert_close(attend(torch.float64, window, 2.0), whole)
