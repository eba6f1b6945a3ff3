"""The real Gemma 3 270M from its GGUF: greedy text as transformers computes it from the same file, in float32."""

from __future__ import annotations

from mmap import mmap
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from helpers.local_comm import LocalComm, run_ranks
from shiftcore.layout import Gear
from shiftruntime.kernels.exact import ExactOps
from shiftruntime.kernels.plain import PlainOps
from shiftruntime.models.decoder import Chunk, Decoder, StepBatch
from shiftruntime.models.kv_cache import allocate_kv, kv_block_bytes
from shiftruntime.models.sample import Sample
from shiftruntime.models.sampling import sample
from shiftruntime.models.source import ModelSource, open_model
from shiftruntime.models.tokenizer import load_tokenizer
from shiftruntime.models.weights import fill, plan_arena, view
from torch import Tensor
from transformers import initialization

pytestmark = pytest.mark.oracle

PROMPT = "Shift parallelism splits a transformer by sequence or by tensor. The reason is that"
NUM_TOKENS = 32
RANKS = 2
HF_PARTS = {
    "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(gemma_gguf: Path) -> ModelSource:
    return open_model(gemma_gguf)


@pytest.fixture(scope="module")
def weights(source: ModelSource) -> dict[str, Tensor]:
    layout = plan_arena(source.config, torch.float32, RANKS)
    arena = mmap(-1, layout.total_bytes)
    seen: list[tuple[int, int]] = []
    fill(source, layout, arena, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)
    return view(layout, arena)


def test_header_facts(source: ModelSource) -> None:
    config = source.config
    assert (config.num_layers, config.num_query_heads, config.num_kv_heads, config.head_dim) == (18, 4, 1, 256)
    assert [i for i in range(18) if not config.slides(i)] == [5, 11, 17]
    assert (config.rope_theta, config.rope_theta_local, config.sliding_window) == (1_000_000.0, 10_000.0, 512)
    assert (config.norm_offset, config.tie_embeddings, config.eos_ids, config.bos_id) == (0.0, True, (1,), 2)
    assert kv_block_bytes(config, 2, 16, torch.bfloat16) == 2 * 18 * 16 * 256 * 2


def reference(path: Path) -> transformers.PreTrainedModel:
    """Gemma 3 of transformers with the tensors that the gguf package reads; its norms add the 1 that GGUF contains."""
    config = transformers.Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=32_768, sliding_window=512,
        query_pre_attn_scalar=256, attn_implementation="eager",
    )  # fmt: skip
    with initialization.no_init_weights():
        model = transformers.Gemma3ForCausalLM(config)
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        name = "model." + tensor.name.replace("blk.", "layers.")
        for theirs, hf in HF_PARTS.items():
            name = name.replace(f".{theirs}.weight", f".{hf}.weight")
        state[name] = values - 1 if "norm" in name else values
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, assign=True)
    return model.eval()


def greedy(source: ModelSource, weights: dict[str, Tensor], prompt: list[int]) -> tuple[list[int], list[float]]:
    """Two ranks; the prompt in sp2, then tp2 and sp2 in turn."""

    def work(comm: LocalComm) -> tuple[list[int], list[float]]:
        torch.set_num_threads(1)
        kv = allocate_kv(source.config, RANKS, num_blocks=8, block_size=16, dtype=torch.float32)
        decoder = Decoder(source.config, weights, comm, PlainOps(), kv)
        new, known, tokens, logprobs = prompt, 0, [], []
        for i in range(NUM_TOKENS):
            gear = Gear(1, 2) if i % 2 else Gear(2, 1)
            positions = torch.arange(known, known + len(new))
            chunk = Chunk(0, len(new), known, tuple(range(8)))
            batch = StepBatch(gear, torch.tensor(new), positions, (chunk,), torch.tensor([len(new) - 1]))
            drawn = sample(decoder.forward(batch), [Sample(logprob=True)], comm, decoder.ops)
            known += len(new)
            new = drawn.tokens.tolist()
            tokens += new
            logprobs += drawn.logprobs.tolist()
        return tokens, logprobs

    first, second = run_ranks(RANKS, work)
    assert first == second
    return first


@pytest.mark.parametrize(("ranks", "gears"), [(2, (Gear(2, 1), Gear(1, 2))), (4, (Gear(2, 2), Gear(4, 1)))])
def test_exact_mode_changes_no_bit(
    ranks: int, gears: tuple[Gear, ...], source: ModelSource, weights: dict[str, Tensor]
) -> None:
    """The vocabulary of 262,144 needs no padding for 1, 2 or 4 ranks, so that all can share one arena."""
    ids = torch.arange(1000, 1007)

    def logits(comm: LocalComm, gears: tuple[Gear, ...]) -> Tensor:
        kv = allocate_kv(source.config, comm.size, num_blocks=2, block_size=16, dtype=torch.float32)
        decoder = Decoder(source.config, weights, comm, ExactOps(), kv)
        parts = zip(gears, ((0, 5), (5, 7)), strict=True)
        return torch.cat([decoder.forward(step(gear, ids, *bounds)) for gear, bounds in parts])

    def step(gear: Gear, ids: Tensor, first: int, stop: int) -> StepBatch:
        chunk = Chunk(0, stop - first, first, (1, 0))
        return StepBatch(gear, ids[first:stop], torch.arange(first, stop), (chunk,), torch.tensor([stop - first - 1]))

    (alone,) = run_ranks(1, lambda comm: logits(comm, (Gear(1, 1), Gear(1, 1))))
    assert torch.equal(torch.cat(run_ranks(ranks, lambda comm: logits(comm, gears)), dim=1), alone)


def test_greedy_text_is_that_of_transformers(source: ModelSource, weights: dict[str, Tensor], gemma_gguf: Path) -> None:
    prompt = load_tokenizer(gemma_gguf).encode(PROMPT)
    tokens, logprobs = greedy(source, weights, prompt)
    model = reference(gemma_gguf)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == tokens
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert (torch.tensor(logprobs) - expected).abs().max() <= 1e-4
