"""The log probabilities of a long prompt must not need the logits of all its rows at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from helpers.local_comm import Board, LocalComm, run_ranks
from helpers.tiny_models import BLOCK_SIZE, LoadedModel, save_llama
from shiftcore.layout import Gear
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.models.sampling import sample
from shiftruntime.worker import rank as rank_module
from shiftruntime.worker.messages import ChunkPlan, Done, Sample, StepPlan
from shiftruntime.worker.rank import Rank
from torch import Tensor

PROMPT = tuple(range(3, 32))
BLOCKS = tuple(range(-(-len(PROMPT) // BLOCK_SIZE)))


@pytest.mark.parametrize("gear", [Gear(1, 2), Gear(2, 1)], ids=str)
def test_pieces_score_like_the_whole(gear: Gear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path)
    model = LoadedModel.load(tmp_path, gear.ranks)
    chunk = ChunkPlan(PROMPT, 0, BLOCKS, Sample(logprob=True), PROMPT[1:])
    plan = StepPlan(1, gear.name, 0, (chunk, ChunkPlan((5, 6), 0, (40,), None, (6,))))
    widths: list[int] = []
    shard_width = 66  # 131 ids on two ranks

    def work(comm: LocalComm) -> Done:
        torch.set_num_threads(1)
        sent: list[msgspec.Struct] = []
        rank = Rank(comm.rank, comm.size, -1, comm, sent.append)
        rank._decoder = decoder = model.decoder(comm, ExactOps())
        head = decoder._logits

        def counted(x: Tensor) -> Tensor:
            widths.append(len(x))
            return head(x)

        decoder._logits = counted  # type: ignore[method-assign]
        rank.step(plan)
        (done,) = sent
        assert isinstance(done, Done)
        return done

    whole = run_ranks(gear.ranks, work)
    assert set(widths) == {len(PROMPT) + 1}
    widths.clear()
    monkeypatch.setattr(rank_module, "LOGITS_AT_ONCE", 4 * shard_width)
    assert run_ranks(gear.ranks, work) == whole
    assert max(widths) == 4
    assert len(whole[0].target_logprobs) == len(PROMPT)


def test_a_decode_step_does_not_copy_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the largest tensor of a step: 64 rows of 128 k ids are 33 MB."""
    save_llama(tmp_path)
    rank = Rank(0, 1, -1, LocalComm(Board(1), 0), lambda _: None)
    rank._decoder = LoadedModel.load(tmp_path, 1).decoder(LocalComm(Board(1), 0), ExactOps())
    made: list[Tensor] = []
    forward, seen = rank._decoder.forward, []
    monkeypatch.setattr(rank._decoder, "forward", lambda batch: made.append(forward(batch)) or made[-1])
    monkeypatch.setattr(rank_module, "sample", lambda logits, *rest: seen.append(logits) or sample(logits, *rest))
    rank.step(StepPlan(1, "sp1", 0, (ChunkPlan((5,), 0, (0,), Sample()), ChunkPlan((6,), 0, (40,), Sample()))))
    assert seen[0] is made[0]
