"""Mixtures of experts: against transformers in every gear, and bit-equal in exact mode, experts shared unevenly."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.local_comm import LocalComm, run_ranks
from helpers.tiny_models import LoadedModel, Run, one_step_each, random_sequences, random_steps, run_steps
from helpers.tiny_moe import save_mixtral, save_qwen3_moe
from safetensors.torch import load_file, save_file
from shiftcore.layout import Gear, allowed_gears
from shiftruntime.config import Experts
from shiftruntime.errors import StartupError
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.ops import ExpertWeights, Ops
from shiftruntime.kernels.plain import PlainOps
from shiftruntime.kernels.routing import assigned, largest
from shiftruntime.layers.moe import ExpertPlan, MoeWeights, sparse_feed_forward
from shiftruntime.models.source import open_model
from shiftruntime.models.weights import fill, plan_arena
from torch import Tensor

LENGTHS = (29, 5, 34)
MAX_DIFFERENCE = 1e-4
SPARSE_STEP = {"decoder_sparse_step": 2, "mlp_only_layers": [3], "num_hidden_layers": 4, "norm_topk_prob": False}
Saver = Callable[..., transformers.PreTrainedModel]
MODELS: dict[str, tuple[Saver, dict[str, Any]]] = {
    "mixtral": (save_mixtral, {}),
    "mixtral-three-experts-sliding": (save_mixtral, {"num_local_experts": 3, "sliding_window": 9}),
    "qwen3-moe": (save_qwen3_moe, {}),
    "qwen3-moe-sparse-step": (save_qwen3_moe, SPARSE_STEP | {"num_local_experts": 11, "num_experts_per_tok": 4}),
}
GEARS = [gear for ranks in (1, 2, 3, 4) for gear in allowed_gears(Gear(ranks, 1))]


def shape(ranks: int) -> dict[str, Any]:
    """24 query heads, and kv heads that split or replicate evenly."""
    kv_heads = {1: 6, 2: 6, 3: 6, 4: 2, 6: 2, 8: 4}[ranks]
    return {"num_attention_heads": 24, "head_dim": 4, "num_key_value_heads": kv_heads}


@pytest.mark.oracle
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", list(MODELS))
def test_logprobs_agree_with_transformers_in_every_gear(name: str, ranks: int, tmp_path: Path) -> None:
    saver, overrides = MODELS[name]
    theirs = saver(tmp_path, **(shape(ranks) | overrides))
    sequences = random_sequences(LENGTHS, random.Random(1))
    with torch.inference_mode():
        expected = [theirs(torch.tensor([s])).logits[0].log_softmax(-1) for s in sequences]
    model = LoadedModel.load(tmp_path, ranks)
    gears = allowed_gears(Gear(ranks, 1))
    schedules = [one_step_each(sequences, gear) for gear in gears]
    schedules += [random_steps(sequences, (gear,), random.Random(2)) for gear in gears]
    schedules.append(random_steps(sequences, gears, random.Random(3)))
    for steps in schedules:
        logits = run_steps(model, steps, sequences).logits
        differences = [(a.log_softmax(-1) - b).abs().max() for a, b in zip(logits, expected, strict=True)]
        assert float(max(differences)) <= MAX_DIFFERENCE, {step.gear for step in steps}


@pytest.mark.parametrize(
    ("name", "ranks", "experts", "dtype"),
    [
        ("mixtral", 2, 8, torch.float32), ("mixtral", 3, 8, torch.float64), ("mixtral", 4, 3, torch.float32),
        ("mixtral", 6, 8, torch.float32), ("mixtral", 8, 5, torch.float64), ("qwen3-moe", 3, 8, torch.float32),
        ("qwen3-moe", 4, 7, torch.float64), ("qwen3-moe", 6, 5, torch.float64), ("qwen3-moe", 8, 12, torch.float32),
    ],
)  # fmt: skip
def test_random_gears_change_no_bit(name: str, ranks: int, experts: int, dtype: torch.dtype, tmp_path: Path) -> None:
    saver, overrides = MODELS[name]
    saver(tmp_path, **(shape(ranks) | overrides | {"num_local_experts": experts}))
    rng = random.Random(ranks)
    sequences = random_sequences((23, 5, 14), rng)
    reference = alone(tmp_path, sequences, dtype)
    steps = random_steps(sequences, allowed_gears(Gear(ranks, 1)), rng)
    run = run_steps(LoadedModel.load(tmp_path, ranks, dtype), steps, sequences, ExactOps)
    assert_equal(run, reference)


def alone(folder: Path, sequences: list[list[int]], dtype: torch.dtype) -> Run:
    """One rank, each sequence whole in a step of its own."""
    return run_steps(LoadedModel.load(folder, 1, dtype), one_step_each(sequences, Gear(1, 1)), sequences, ExactOps)


def assert_equal(run: Run, reference: Run) -> None:
    for mine, theirs in zip(run.logits, reference.logits, strict=True):
        assert not theirs.isnan().any()
        assert torch.equal(mine, theirs)


def test_plain_mode_differs_between_gears(tmp_path: Path) -> None:
    """The comparison above can see differences."""
    save_mixtral(tmp_path, **shape(4))
    sequences = random_sequences((23, 5, 14), random.Random(0))
    reference = run_steps(LoadedModel.load(tmp_path, 1), one_step_each(sequences, Gear(1, 1)), sequences)
    run = run_steps(LoadedModel.load(tmp_path, 4), one_step_each(sequences, Gear(2, 2)), sequences)
    assert any(not torch.equal(a, b) for a, b in zip(run.logits, reference.logits, strict=True))


def test_sums_per_rank_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that add up their own experts first change bits, but only from three experts per token on.

    Two terms have no order: a Mixtral with its two experts could not show it.
    """
    apart = ExactOps.run_experts

    def summed(self: ExactOps, *args: Any) -> Tensor:
        return apart(self, *args).sum(1, keepdim=True)

    save_qwen3_moe(tmp_path, num_experts_per_tok=4, **shape(3))
    sequences = random_sequences((23, 5, 14), random.Random(0))
    reference = alone(tmp_path, sequences, torch.float32)
    monkeypatch.setattr(ExactOps, "run_experts", summed)
    run = run_steps(LoadedModel.load(tmp_path, 3), one_step_each(sequences, Gear(3, 1)), sequences, ExactOps)
    assert any(not torch.equal(a, b) for a, b in zip(run.logits, reference.logits, strict=True))


def test_one_expert_gets_all_rows_and_three_ranks_none(tmp_path: Path) -> None:
    """A router of zeros makes all experts equal: the lowest id wins every tie."""
    save_mixtral(tmp_path, num_experts_per_tok=1, **shape(4))
    edit(tmp_path, lambda name, tensor: tensor.zero_() if name.endswith(".gate.weight") else tensor)
    sequences = random_sequences((23, 5, 14), random.Random(0))
    reference = alone(tmp_path, sequences, torch.float32)
    steps = random_steps(sequences, allowed_gears(Gear(4, 1)), random.Random(1))
    assert_equal(run_steps(LoadedModel.load(tmp_path, 4), steps, sequences, ExactOps), reference)
    # Experts that nobody asks may be anything.
    edit(tmp_path, lambda name, t: t.fill_(torch.nan) if ".experts." in name and ".experts.0." not in name else t)
    assert_equal(run_steps(LoadedModel.load(tmp_path, 4), steps, sequences, ExactOps), reference)


def edit(folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: change(name, tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("make_ops", [ExactOps, PlainOps])
@pytest.mark.parametrize("gear", [gear for gear in GEARS if gear.ranks > 1], ids=str)
def test_padding_rows_travel_nowhere_and_change_nothing(gear: Gear, make_ops: Callable[[], Ops]) -> None:
    experts, hidden, tokens = Experts(5, 2, 6, (True,)), 8, 2 * gear.ranks + 1
    torch.manual_seed(0)
    x, router = torch.randn(gear.padded(tokens), hidden), torch.randn(5, hidden)
    gate, up, down = torch.randn(5, 6, hidden), torch.randn(5, 6, hidden), torch.randn(5, hidden, 6)
    x[tokens:] = torch.nan

    def work(comm: LocalComm) -> Tensor:
        plan = ExpertPlan.of(experts, gear, comm.rank, tokens)
        owned = (plan.owners == comm.rank).nonzero()[:, 0]
        first = int(owned[0]) if len(owned) else 0
        own = ExpertWeights(first, gate[owned], up[owned], down[owned])
        per_rank = len(x) // gear.sequence
        start = gear.sequence_index(comm.rank) * per_rank
        w = MoeWeights(router, own)
        return sparse_feed_forward(x[start : start + per_rank], w, plan, "silu", make_ops(), comm)

    shards = run_ranks(gear.ranks, work)
    together = torch.cat([shards[rank] for rank in gear.sequence_group(0)])
    expected = torch.stack([one_row(row, router, gate, up, down) for row in x[:tokens]])
    torch.testing.assert_close(together[:tokens], expected, atol=1e-4, rtol=1e-4)
    if gear.sequence > 1:
        assert not together[tokens:].any(), "padding is zero where it did not travel"
    for rank in range(gear.ranks):
        assert torch.equal(shards[rank], shards[gear.sequence_index(rank)]), "replicas hold the same bits"


def one_row(x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The formula, spelled out for one token and two experts."""
    probabilities = (router @ x).softmax(0)
    chosen = sorted(range(len(router)), key=lambda e: -float(probabilities[e]))[:2]
    total = sum(float(probabilities[e]) for e in chosen)
    out = torch.zeros_like(x)
    for e in chosen:
        hidden = torch.nn.functional.silu(gate[e] @ x) * (up[e] @ x)
        out += float(probabilities[e]) / total * (down[e] @ hidden)
    return out


def test_ties_go_to_the_lowest_ids() -> None:
    ids, values = largest(torch.tensor([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]]), 2)
    assert ids.tolist() == [[1, 2], [0, 1], [0, 3]]
    torch.testing.assert_close(values, torch.tensor([[0.3, 0.3], [0.25, 0.25], [0.0, 1.0]]))


def test_rows_are_grouped_by_expert() -> None:
    groups = assigned(torch.tensor([[0, 2], [2, 4], [1, 2], [0, 3]]), 1, 3)
    found = [(expert, rows.tolist(), places.tolist()) for expert, rows, places in groups]
    assert found == [(0, [2], [0]), (1, [0, 1, 2], [1, 0, 1]), (2, [3], [1])]


@pytest.mark.parametrize("ops", [ExactOps(), PlainOps()], ids=lambda ops: ops.name)
@pytest.mark.parametrize("normalised", [True, False])
def test_routing_is_softmax_over_all_experts_then_the_largest(ops: Ops, normalised: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(17, 9)
    values, chosen = logits.softmax(-1).topk(3)
    if normalised:
        values /= values.sum(-1, keepdim=True)
    chosen, order = chosen.sort(-1)
    ids, weights = ops.route(logits, 3, normalised)
    assert torch.equal(ids, chosen)
    torch.testing.assert_close(weights, values.gather(1, order))


@pytest.mark.parametrize("saver", [save_mixtral, save_qwen3_moe])
def test_a_checkpoint_with_fused_experts_is_the_same_model(saver: Saver, tmp_path: Path) -> None:
    model = saver(tmp_path / "one-by-one")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    names = load_file(tmp_path / "fused" / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    fused, single = (LoadedModel.load(tmp_path / kind, 2).weights for kind in ("fused", "one-by-one"))
    assert fused.keys() == single.keys()
    assert all(torch.equal(fused[name], single[name]) for name in fused)


@pytest.mark.parametrize("fused", [True, False])
def test_an_expert_of_another_shape_is_refused_by_name(fused: bool, tmp_path: Path) -> None:
    save_mixtral(tmp_path).save_pretrained(tmp_path, save_original_format=not fused)
    tensor = "mlp.experts.gate_up_proj" if fused else "block_sparse_moe.experts.3.w3.weight"
    edit(tmp_path, lambda name, t: t[..., :-1].contiguous() if name == f"model.layers.1.{tensor}" else t)
    with pytest.raises(StartupError, match=rf"model.layers.1.{tensor} has shape .* expected") as refusal:
        open_model(tmp_path)
    assert refusal.value.reason == "ModelDamaged"


def test_a_missing_expert_is_refused_by_name(tmp_path: Path) -> None:
    save_qwen3_moe(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.5.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        StartupError, match=r"tensor model.layers.2.mlp.experts.5.down_proj.weight .* in no safetensors"
    ):
        open_model(tmp_path)


def test_a_rank_holds_its_experts_as_views_of_one_arena(tmp_path: Path) -> None:
    save_mixtral(tmp_path, **shape(3))
    model = LoadedModel.load(tmp_path, 3)
    whole = model.weights["layers.0.expert_up"]

    def work(comm: LocalComm) -> dict[str, tuple[int, int]]:
        decoder = model.decoder(comm)
        views = {}
        for gear in allowed_gears(Gear(3, 1)):
            mlp = decoder._views(gear)[1][0].mlp
            assert isinstance(mlp, MoeWeights)
            views[gear.name] = (mlp.experts.first, len(mlp.experts.up))
            assert mlp.experts.up.data_ptr() == whole[mlp.experts.first].data_ptr()
        return views

    shares = run_ranks(3, work)
    assert shares == [dict.fromkeys(("tp3", "sp3"), share) for share in ((0, 3), (3, 3), (6, 2))]


def test_what_does_not_divide_is_refused_for_dense_layers_only(tmp_path: Path) -> None:
    """An expert lies whole on one rank, so that neither its size nor the number of experts must divide."""
    save_mixtral(tmp_path / "sparse", intermediate_size=25, num_local_experts=3, **shape(8))
    sparse = open_model(tmp_path / "sparse").config
    sparse.check_layout(8)
    ExactOps().check_model(sparse, 8)
    save_qwen3_moe(tmp_path / "mixed", intermediate_size=25, **shape(8))
    mixed = open_model(tmp_path / "mixed").config
    with pytest.raises(StartupError, match=r"over 8 ranks: intermediate_size \(FFN\) 25 does not divide over 8 ranks"):
        mixed.check_layout(8)
    with pytest.raises(StartupError, match="FFN input K=25"):
        ExactOps().check_model(mixed, 8)
    with pytest.raises(StartupError, match="24 query heads do not divide over 5 ranks"):
        sparse.check_layout(5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 9}, "9 experts per token, but there are 8 experts"),
        ({"num_experts_per_tok": 0}, "0 experts per token"),
        ({"intermediate_size": -1}, "intermediate size -1"),
        ({"num_local_experts": "many"}, "num_local_experts must be a number, found 'many'"),
    ],
)
def test_senseless_experts_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_mixtral(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(StartupError, match=message):
        open_model(tmp_path)


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    save_qwen3_moe(tmp_path)
    source = open_model(tmp_path)
    layout = plan_arena(source.config, torch.float32, 2)
    seen: list[tuple[int, int]] = []
    fill(source, layout, bytearray(layout.total_bytes), lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
