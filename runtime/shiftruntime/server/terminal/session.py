"""An engine with its ranks for one person, and Ctrl-C: once it ends the answer, twice everything."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from shiftruntime.engine.client import EngineClient
from shiftruntime.engine.options import EngineOptions
from shiftruntime.models.fetch import Reader
from shiftruntime.server import generation
from shiftruntime.server.fetching import fetched
from shiftruntime.server.frontend import FrontEnd, Text
from shiftruntime.server.options import ServeOptions
from shiftruntime.server.request import Delta, Generation, Options
from shiftruntime.server.terminal.cli import TerminalOptions
from shiftruntime.server.terminal.screen import Screen, ready_line

STOP_SECONDS = 5.0

EngineFactory = Callable[[EngineOptions], EngineClient]


class Interrupted(Exception):
    """Ctrl-C, where there is no answer to end."""


class Interrupts:
    """SIGINT and SIGTERM while a session runs."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._end_answer: Callable[[], None] | None = None
        self.count = 0

    @contextmanager
    def answer(self, end: Callable[[], None]) -> Iterator[None]:
        """The first signal inside calls ``end``, the next one ends the session."""
        self._end_answer, self.count = end, 0
        try:
            yield
        finally:
            self._end_answer = None

    def handle(self) -> None:
        self.count += 1
        if self._end_answer is not None and self.count == 1:
            self._end_answer()
        elif self._task is not None:
            self._task.cancel()


@asynccontextmanager
async def interrupts() -> AsyncIterator[Interrupts]:
    """Raises Interrupted for a signal that no answer takes."""
    loop, state = asyncio.get_running_loop(), Interrupts()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, state.handle)
    try:
        yield state
    except asyncio.CancelledError as error:
        if not state.count:
            raise
        raise Interrupted from error
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class Session:
    """A ready engine."""

    def __init__(self, frontend: FrontEnd, interrupts: Interrupts) -> None:
        self.frontend = frontend
        self._interrupts = interrupts

    @property
    def text(self) -> Text:
        return self.frontend.model.text

    def asking(self, hint: Callable[[], None]) -> AbstractContextManager[None]:
        """While a person types: the first Ctrl-C gives the hint, the next one leaves."""
        return self._interrupts.answer(hint)

    async def answer(self, prompt: str, options: Options, add_special_tokens: bool) -> AsyncGenerator[Delta, None]:
        """Deltas up to the last one, also after Ctrl-C; raises Refusal."""
        name = uuid4().hex
        asked = Generation(prompt, options, request_id=name, add_special_tokens=add_special_tokens)
        with self._interrupts.answer(lambda: generation.abort(self.frontend, name)):
            async with aclosing(generation.generate(self.frontend, asked)) as deltas:
                async for delta in deltas:
                    yield delta

    def check(self) -> None:
        """Raises EngineFailed when there is no engine to go on with."""
        failed = self.frontend.engine.failed
        if failed.done() and not failed.cancelled():
            raise failed.result()

    @property
    def interrupted(self) -> bool:
        """Whether the last answer was ended by Ctrl-C."""
        return self._interrupts.count > 0


@asynccontextmanager
async def session(
    options: TerminalOptions, screen: Screen, make_engine: EngineFactory, load_text: Callable[[str], Text]
) -> AsyncIterator[Session]:
    """Load the model and start the ranks; they end with the session. Raises StartupError, EngineFailed, Interrupted."""
    served = ServeOptions(
        options.engine, Path(options.engine.model).stem, openai_port=None, model_defaults=options.model_defaults
    )
    async with interrupts() as state:
        frontend = FrontEnd(served, make_engine(options.engine))
        reader = Reader()
        try:
            model = await fetched(options.engine.model, None, screen.phase, reader=reader)
            text = await asyncio.to_thread(load_text, model)
            ready = await frontend.engine.start(screen.phase, model)
            frontend.started(ready, text)
            frontend.lifecycle.become_ready()
            screen.note(ready_line(ready, await frontend.state()))
            yield Session(frontend, state)
        finally:
            with suppress(TimeoutError):
                await asyncio.wait_for(frontend.engine.stop(STOP_SECONDS), 2 * STOP_SECONDS)
            reader.close()
