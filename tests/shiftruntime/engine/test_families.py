"""Models with traits of their own through the whole engine: real ranks, both file formats, greedy as transformers."""

from __future__ import annotations

from pathlib import Path

from helpers.engines import engine_options, generate, greedy, running_engine, submit
from helpers.tiny_families import save_gemma2, save_qwen3
from helpers.tiny_gguf import write_gguf

PROMPT = [5, 17, 99, 3, 42, 42, 8, 120, 77, 64, 31]  # longer than the window of the sliding layers
NUM_TOKENS = 8


async def test_soft_caps_and_windows_reach_the_ranks(tmp_path: Path) -> None:
    expected = greedy(save_gemma2(tmp_path), PROMPT, NUM_TOKENS)
    async with running_engine(engine_options(tmp_path, 2)) as client:
        assert await generate(client, submit("a", PROMPT, NUM_TOKENS)) == expected


async def test_a_yarn_model_in_a_gguf_file(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    expected = greedy(save_qwen3(tmp_path, rope_parameters=rope), PROMPT, NUM_TOKENS)
    write_gguf(tmp_path, tmp_path / "m.gguf", "qwen3")
    async with running_engine(engine_options(tmp_path / "m.gguf", 2)) as client:
        assert await generate(client, submit("a", PROMPT, NUM_TOKENS)) == expected
