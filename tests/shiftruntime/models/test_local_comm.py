"""The in-process collectives: what each rank gets, and that a failing rank wakes the others."""

from __future__ import annotations

import pytest
import torch
from helpers.local_comm import LocalComm, run_ranks
from shiftruntime.kernels.probe import choose_dtype
from torch import Tensor


def test_collectives() -> None:
    def work(comm: LocalComm) -> tuple[Tensor, Tensor, Tensor]:
        group = (0, 1) if comm.rank < 2 else (2, 3)
        x = torch.tensor([10.0 * comm.rank, 10.0 * comm.rank + 1])
        comm.barrier()
        return comm.all_reduce(x, group), comm.all_gather(x, (0, 1, 2, 3)), comm.all_to_all(x, group)

    results = run_ranks(4, work)
    assert [r[0].tolist() for r in results] == [[10, 12], [10, 12], [50, 52], [50, 52]]
    assert all(r[1].tolist() == [[0, 1], [10, 11], [20, 21], [30, 31]] for r in results)
    assert [r[2].tolist() for r in results] == [[0, 10], [1, 11], [20, 30], [21, 31]]


def test_a_failing_rank_fails_all() -> None:
    def work(comm: LocalComm) -> None:
        if comm.rank == 1:
            raise ValueError("rank 1 is ill")
        comm.barrier()

    with pytest.raises(ValueError, match="rank 1 is ill"):
        run_ranks(3, work)


def test_probe_chooses_between_two() -> None:
    assert choose_dtype() in (torch.float32, torch.bfloat16)
    assert choose_dtype("cuda") == torch.bfloat16
