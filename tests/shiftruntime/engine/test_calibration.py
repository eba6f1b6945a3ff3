"""Steps that are measured: they fit the cache, whatever its size."""

from __future__ import annotations

import pytest
from shiftruntime.engine.calibration import step_chunks


@pytest.mark.parametrize(
    ("n", "num_blocks", "lengths"),
    [
        (3, 100, [1, 1, 1]),  # decodes with a context of 31 tokens: 8 blocks each
        (3, 24, [1, 1, 1]),
        (3, 23, [3]),  # three such sequences do not fit: a prefill
        (40, 18, [32, 8]),
        (40, 9, None),
    ],
)
def test_a_measured_step_fits_the_cache(n: int, num_blocks: int, lengths: list[int] | None) -> None:
    chunks = step_chunks(n, max_num_seqs=8, max_model_len=32, num_blocks=num_blocks, block_size=4)
    assert (chunks and [len(chunk.tokens) for chunk in chunks]) == lengths
    blocks = [block for chunk in chunks or () for block in chunk.blocks]
    assert len(set(blocks)) == len(blocks)
    assert all(block < num_blocks for block in blocks)
