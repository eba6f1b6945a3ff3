"""The choices of one request: their ids in the engine, their outputs merged, each output as a delta."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from time import monotonic

from shiftruntime.engine.client import EngineFailed
from shiftruntime.engine.messages import Finish, Output, Submit
from shiftruntime.engine.messages import Journey as EngineJourney
from shiftruntime.server.request import Delta, Journey, Usage
from shiftruntime.server.text import Completion


def choice_ids(request_id: str, n: int) -> tuple[str, ...]:
    """Ids in the engine: the request's own for choice 0, ``ID/1`` and so on for its siblings."""
    return (request_id, *(f"{request_id}/{index}" for index in range(1, n)))


class Choice:
    """One completion of a request, fed with its outputs in order."""

    def __init__(self, index: int, submit: Submit, completion: Completion, arrived: float, scores_only: bool) -> None:
        """``scores_only``: the engine makes one token because it must; nobody asked for it."""
        self.submit = submit
        self.finish: Finish | None = None
        self.first_token: float | None = None  # monotonic seconds, as the next
        self.last_token: float | None = None
        self._index = index
        self._completion = completion
        self._arrived = arrived
        self._scores_only = scores_only

    @property
    def tokens(self) -> int:
        return self._completion.tokens

    @property
    def stopped(self) -> bool:
        """A stop string was met: the engine need not go on, and what it still says is not shown."""
        return self._completion.stopped

    def push(self, request_id: str, output: Output) -> Delta:
        """What is new; sets ``finish`` with the last output."""
        text, used = self._new_text(output)
        if output.finish is not None:
            text += self._completion.finish()
            self.finish = Finish.STOP if self.stopped else output.finish
            if self._scores_only and self.finish is Finish.STOP:
                self.finish = Finish.LENGTH
        return Delta(
            request_id=request_id,
            index=self._index,
            text=text,
            token_ids=output.token_ids[:used],
            logprobs=output.logprobs[:used],
            top_logprobs=output.top_logprobs[:used],
            prompt_tokens=len(self.submit.prompt),
            prompt_logprobs=output.prompt_logprobs,
            finish=self.finish,
            usage=None if self.finish is None else self._usage(output.journey),
            journey=None if self.finish is None else self._journey(output.journey),
        )

    def _new_text(self, output: Output) -> tuple[str, int]:
        if output.token_ids and self.first_token is None:
            self.first_token = monotonic()
        if self.stopped or self._scores_only:
            return "", 0
        return self._completion.push(output.token_ids)

    def _usage(self, journey: EngineJourney | None) -> Usage:
        return Usage(len(self.submit.prompt), self.tokens, journey.cached_tokens if journey else 0)

    def _journey(self, journey: EngineJourney | None) -> Journey | None:
        if journey is None:
            return None
        ttft = None if self.first_token is None else self.first_token - self._arrived
        return Journey(journey.queue_seconds, ttft, journey.gear_tokens)


async def merge(streams: Sequence[AsyncIterator[Output]]) -> AsyncGenerator[tuple[int, Output], None]:
    """(index of the stream, output) as they come; raises EngineFailed when a stream does."""
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    queue: asyncio.Queue[tuple[int, Output | EngineFailed | None]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            index, item = await queue.get()  # the reader's deadline and the engine's watchdog bound it
            if isinstance(item, EngineFailed):
                raise item
            if item is None:
                running -= 1
            else:
                yield index, item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def close(streams: Sequence[AsyncIterator[Output]]) -> None:
    """End the engine's generators now and not when they are collected: their ids are free for the next request then."""
    for stream in streams:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


async def _pump(
    index: int, stream: AsyncIterator[Output], queue: asyncio.Queue[tuple[int, Output | EngineFailed | None]]
) -> None:
    try:
        async for output in stream:
            queue.put_nowait((index, output))
        queue.put_nowait((index, None))
    except EngineFailed as failure:
        queue.put_nowait((index, failure))
