"""What all answers share: ids, usage, how a request went, and generations for several prompts at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import time
from typing import Any
from uuid import uuid4

from shiftruntime.engine.messages import Finish
from shiftruntime.server.frontend import FrontEnd
from shiftruntime.server.generation import generate
from shiftruntime.server.request import Delta, Generation
from shiftruntime.server.request_log import Accepted

FINISH = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.ABORT: "abort"}


@dataclass(frozen=True)
class Head:
    """What every chunk of an answer begins with."""

    id: str
    object: str
    model: str
    created: int = field(default_factory=lambda: int(time()))

    @staticmethod
    def new(prefix: str, kind: str, model: str) -> Head:
        return Head(f"{prefix}-{uuid4().hex}", kind, model)

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": self.object, "created": self.created, "model": self.model}
        return head | {"choices": choices} | more


@dataclass
class Usage:
    """Tokens of an answer so far: each prompt counts once, however many choices it has."""

    prompts: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    completion: int = 0
    journeys: list[dict[str, Any]] = field(default_factory=list)

    def add(self, prompt: int, delta: Delta) -> None:
        self.prompts[prompt] = delta.prompt_tokens
        self.completion += len(delta.token_ids)
        if delta.usage is None:
            return
        self.cached[prompt] = max(self.cached.get(prompt, 0), delta.usage.cached_tokens)
        if delta.journey is not None:
            ttft = delta.journey.ttft_seconds
            self.journeys.append(
                {
                    "queue_ms": round(1e3 * delta.journey.queue_seconds, 3),
                    "ttft_ms": None if ttft is None else round(1e3 * ttft, 3),
                    "gear_share": {gear: round(share, 4) for gear, share in delta.journey.gear_share.items()},
                }
            )

    def body(self) -> dict[str, Any]:
        prompt = sum(self.prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }

    def shift(self) -> dict[str, Any]:
        """Our addition to an answer: how each choice went."""
        return {"shift": {"choices": self.journeys}}


async def generate_all(
    frontend: FrontEnd, generations: Sequence[Generation], accepted: Accepted
) -> AsyncGenerator[tuple[int, Delta], None]:
    """(index of the prompt, delta) as they come; ``accepted`` once all are. The first Refusal ends the rest."""
    if len(generations) == 1:
        async with aclosing(generate(frontend, generations[0], accepted)) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()
    waiting = len(generations)

    async def one_accepted() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            await accepted()

    async def pump(index: int) -> None:
        try:
            async with aclosing(generate(frontend, generations[index], one_accepted)) as deltas:
                async for delta in deltas:
                    queue.put_nowait((index, delta))
            queue.put_nowait((index, None))
        except Exception as error:  # noqa: BLE001 - the reader raises it
            queue.put_nowait((index, error))

    pumps = [asyncio.create_task(pump(index)) for index in range(len(generations))]
    try:
        running = len(pumps)
        held: list[tuple[int, Delta]] = []  # of those that began before the last one was accepted
        while running:
            index, item = await queue.get()  # every generation has its own deadline
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
                continue
            held.append((index, item))
            if not waiting:
                for each in held:
                    yield each
                held.clear()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
