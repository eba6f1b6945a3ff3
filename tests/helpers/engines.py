"""A real engine with real ranks, as the front end drives it, and a look at its processes from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from shiftcore.layout import Gear
from shiftruntime.engine.client import EngineClient
from shiftruntime.engine.messages import EngineState, Output, Sampling, Submit
from shiftruntime.engine.options import EngineOptions

DEADLINE_SECONDS = 30.0
_STOP_SECONDS = 10.0


def engine_options(model: Path, ranks: int = 2, **changes: Any) -> EngineOptions:
    values: dict[str, Any] = {
        "dtype": "float32", "max_num_seqs": 4, "max_batched_tokens": 32, "block_size": 4, "kv_memory_bytes": 4 << 20,
        "calibrate": False, "startup_timeout_seconds": 60.0,
    }  # fmt: skip
    return EngineOptions(str(model), ranks, Gear(ranks, 1), **(values | changes))


@asynccontextmanager
async def running_engine(options: EngineOptions) -> AsyncIterator[EngineClient]:
    client = EngineClient(options)
    try:
        await client.start(lambda _: None)
        yield client
    finally:
        for pid in children(os.getpid(), "shiftruntime.engine"):
            for rank in children(pid):
                os.kill(rank, signal.SIGCONT)  # a rank that a test stopped must be able to end
        await client.stop(_STOP_SECONDS)


def submit(name: str, prompt: Sequence[int], max_tokens: int, **changes: Any) -> Submit:
    """A greedy request."""
    sampling = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "max_tokens": max_tokens} | changes
    return Submit(name, tuple(prompt), Sampling(**sampling))


async def generate(client: EngineClient, request: Submit) -> list[int]:
    return await collect(await client.submit(request))


async def collect(outputs: AsyncIterator[Output]) -> list[int]:
    return [token async for output in outputs for token in output.token_ids]


async def until(client: EngineClient, holds: Callable[[EngineState], bool], seconds: float = 5.0) -> EngineState:
    """Poll the state until it holds."""
    deadline = time.monotonic() + seconds
    while not holds(state := await client.state()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {state}"
        await asyncio.sleep(0.005)
    return state


def greedy(model: transformers.PreTrainedModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What Hugging Face generates, token by token without a cache."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(max_tokens):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def children(parent: int, command: str = "") -> list[int]:
    """Pids of the live children of a process whose command line contains ``command``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, ppid = entry.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
            line = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if int(ppid) == parent and state != "Z" and command in line:
            found.append(int(entry.name))
    return sorted(found)


def engine_processes() -> tuple[int, list[int]]:
    """(the one engine of this test process, its ranks in order)."""
    (engine,) = children(os.getpid(), "shiftruntime.engine")
    return engine, ranks_of(engine)


def ranks_of(engine: int) -> list[int]:
    by_rank: list[int] = []
    while found := children(engine, f"--rank {len(by_rank)} "):
        by_rank += found
    return by_rank


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def assert_gone(pids: Iterable[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"processes {left} still run after {seconds:g} s"
        await asyncio.sleep(0.02)
