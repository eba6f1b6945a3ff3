"""What the watchdog sees of a rank that computes."""

from pathlib import Path

import pytest
from helpers.rank_groups import rank_group
from helpers.tiny_models import save_gemma3
from shiftruntime.worker.messages import ChunkPlan

pytestmark = pytest.mark.ranks


def test_one_rank_alone_shows_progress_in_every_layer(tmp_path: Path) -> None:
    """It meets no collective: its counter stood still, and a step of more than 10 s counted as a hang."""
    save_gemma3(tmp_path)
    with rank_group(tmp_path, 1, dtype="float32", exact=False) as group:
        (before,) = group.ranks.progress()
        others = tuple((i,) for i in range(1, len(group.started.config.layer_groups)))
        group.run(group.gears[0], (ChunkPlan((5, 6, 7), 0, (0,), targets=(6, 7, 8), other_blocks=others),))
        (after,) = group.ranks.progress()
    assert after - before >= group.started.config.num_layers
