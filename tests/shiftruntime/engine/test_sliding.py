"""A model with sliding layers on a real engine: blocks behind the window serve others, and prefixes stay right."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
import transformers
from helpers.engines import collect, engine_options, greedy, running_engine, submit, until
from helpers.tiny_families import save_gemma3
from shiftruntime.engine.client import EngineClient
from shiftruntime.engine.messages import EngineState
from shiftruntime.engine.options import EngineOptions

pytestmark = [pytest.mark.ranks, pytest.mark.asyncio(loop_scope="module")]

BLOCK_SIZE = 4
GROUPS = 3  # six layers, two of them full: blocks of two layers, one group full and two sliding
PROMPT = random.Random(9).choices(range(3, 90), k=60)


class TinyGemma(NamedTuple):
    path: Path
    oracle: transformers.PreTrainedModel


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> TinyGemma:
    path = tmp_path_factory.mktemp("gemma")
    return TinyGemma(path, save_gemma3(path, max_position_embeddings=256))


def options(gemma: TinyGemma) -> EngineOptions:
    """Steps of at most 8 tokens, so that a sequence holds little more than its window in the sliding groups."""
    return engine_options(gemma.path, max_batched_tokens=8, max_model_len=128, max_num_seqs=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(gemma: TinyGemma) -> AsyncIterator[EngineClient]:
    async with running_engine(options(gemma)) as client:
        yield client


def idle(state: EngineState) -> bool:
    return state.load.running_requests == 0 and state.load.kv_blocks_free == state.load.kv_blocks_total


async def test_the_pool_is_sized_for_windows(engine: EngineClient, gemma: TinyGemma) -> None:
    """Two sequences of 128 tokens would need 2 × 32 blocks per group."""
    window = gemma.oracle.config.sliding_window
    total = (await engine.state()).load.kv_blocks_total
    assert total < 2 * (128 // BLOCK_SIZE) * GROUPS, f"window {window}"


async def test_tokens_far_beyond_the_window_are_those_of_hugging_face(engine: EngineClient, gemma: TinyGemma) -> None:
    prompts = [PROMPT, PROMPT[:30][::-1]]
    results = await asyncio.gather(
        *[collect(await engine.submit(submit(f"far-{i}", prompt, 40))) for i, prompt in enumerate(prompts)]
    )
    assert list(results) == [greedy(gemma.oracle, prompt, 40) for prompt in prompts]
    await until(engine, idle)


async def test_a_prefix_hit_needs_the_last_window_of_sliding_layers(engine: EngineClient, gemma: TinyGemma) -> None:
    prompt = PROMPT[7:] + PROMPT[:7]
    expected = greedy(gemma.oracle, prompt, 12)
    for name, cached in (("cold", 0), ("hot", 56)):
        outputs = [output async for output in await engine.submit(submit(name, prompt, 12))]
        assert [token for output in outputs for token in output.token_ids] == expected, name
        journey = outputs[-1].journey
        assert journey is not None
        assert journey.cached_tokens == cached, name
    await until(engine, idle)
