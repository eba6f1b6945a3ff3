"""Mixtures of experts on real ranks: the same bits in every gear, on every size of pod, in one copy of the weights."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from helpers.rank_groups import Group, rank_group, score_with_random_gears
from helpers.tiny_moe import save_mixtral, save_qwen3_moe
from shiftruntime.worker.messages import ChunkPlan

pytestmark = pytest.mark.ranks

LENGTHS = (17, 9, 21)
PAGE_SLACK = 1.1  # of one copy
LARGE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "head_dim": 64,
}


def sequences() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, 131) for _ in range(length)] for length in LENGTHS]


@pytest.mark.timeout(300)  # ranks on fewer cores take turns
@pytest.mark.parametrize("ranks", [2, 4])
def test_shifts_change_no_bit(ranks: int, tmp_path: Path) -> None:
    save_qwen3_moe(tmp_path, num_local_experts=7, num_attention_heads=24, head_dim=4, num_key_value_heads=2)
    with rank_group(tmp_path, 1, dtype="float64", exact=True) as alone:
        expected = score_with_random_gears(alone, sequences(), random.Random(0))
    with rank_group(tmp_path, ranks, dtype="float64", exact=True) as group:
        got = score_with_random_gears(group, sequences(), random.Random(ranks))
    assert got.logprobs == expected.logprobs
    assert got.shifts >= 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_starts_and_steps_on_every_size_of_pod(ranks: int, tmp_path: Path) -> None:
    """Five experts: shared unevenly, and with six or eight ranks not by all."""
    kv_heads = {1: 2, 2: 2, 3: 3, 4: 2, 6: 2, 8: 4}[ranks]
    save_mixtral(tmp_path, num_local_experts=5, num_attention_heads=24, head_dim=4, num_key_value_heads=kv_heads)
    with rank_group(tmp_path, ranks, dtype="float32", exact=False, startup_seconds=240) as group:
        assert group.started.self_check.passed
        scores = [group.run(gear, (chunk(5),)).target_logprobs for gear in group.gears]
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=1e-4)


def chunk(tokens: int) -> ChunkPlan:
    ids = tuple(range(3, 4 + tokens))
    return ChunkPlan(ids[:-1], 0, tuple(range(-(-tokens // 4))), targets=ids[1:])


@pytest.mark.timeout(300)
def test_four_ranks_hold_one_copy_of_the_weights(tmp_path: Path) -> None:
    """Proportional set size: shared pages count once in all, private copies count in full.

    The mapping alone would not show a rank that copies its weights, so that anonymous memory is compared with that of
    ranks with a small model. Pages of libraries stay out: their share moves with every foreign process that maps them.
    """
    save_mixtral(tmp_path / "small", num_key_value_heads=4)
    save_mixtral(tmp_path / "large", num_key_value_heads=4, **LARGE)
    with rank_group(tmp_path / "small", 4, dtype="float32", exact=False) as group:
        small = visit_every_gear(group)
    with rank_group(tmp_path / "large", 4, dtype="float32", exact=False) as group:
        large = visit_every_gear(group)
    size = weights_bytes(tmp_path / "large")
    assert size > 100 << 20
    mapped, more = large[0], large[1] - small[1]
    print(f"weights {size >> 20} MiB, mapped by 4 ranks {mapped >> 20} MiB, {more >> 20} MiB more anonymous")
    assert 0.5 * size < mapped <= PAGE_SLACK * size
    assert mapped + more <= PAGE_SLACK * size


def visit_every_gear(group: Group) -> tuple[int, int]:
    """(bytes of the weights' mapping, of anonymous memory), PSS summed over the ranks, after steps in all gears."""
    for gear in group.gears:
        group.run(gear, (chunk(40),))
    pids = group.ranks.pids
    return sum(map(mapped_bytes, pids)), sum(map(anonymous_bytes, pids))


def mapped_bytes(pid: int) -> int:
    """PSS of the weights' mapping in a process."""
    total, of_weights = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            of_weights = "memfd:shift-weights" in line
        elif of_weights and line.startswith("Pss:"):
            total += int(line.split()[1]) << 10
    return total


def anonymous_bytes(pid: int) -> int:
    (line,) = (row for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if row.startswith("Pss_Anon:"))
    return int(line.split()[1]) << 10


def weights_bytes(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size
