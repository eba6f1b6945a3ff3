"""The model's files on this machine, with progress as a phase of start-up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

from shiftprotos import contract

from shiftruntime.engine.messages import PhaseUpdate
from shiftruntime.errors import fetch_failed
from shiftruntime.models.fetch import DEFAULT_CACHE, LocalModel, Reader, cached_model, fetch_model, parse_uri

# A large model over a slow line may take hours; a fetch of which nothing is heard for so long stands still.
STALL_SECONDS = 900.0
_CACHE_SECONDS = 60.0
_TRIES = 10
_REPORT_SECONDS = 0.5
_THREAD = "fetch"

T = TypeVar("T")

Report = Callable[[PhaseUpdate], None]


async def fetched(
    uri: str,
    cache: str | None,
    report: Report,
    stall_seconds: float = STALL_SECONDS,
    limit_bytes: int | None = None,
    reader: Reader | None = None,
) -> str:
    """Path of the model, kept by ``reader``; a URI that is local costs nothing. Raises StartupError, also when nothing
    came for ``stall_seconds``; cancelling it ends the download."""
    model = parse_uri(uri)
    if isinstance(model, LocalModel):
        return str(model.path)
    tracker = _Tracker(asyncio.get_running_loop(), report)
    stop = threading.Event()
    report(PhaseUpdate(contract.PHASE_FETCH, 0.0))
    fetch = asyncio.ensure_future(
        _in_daemon(partial(fetch_model, uri, cache_folder(cache), tracker.fetched, stop, limit_bytes, tracker.checked))
    )
    try:
        while not fetch.done():
            silent = monotonic() - tracker.heard
            if silent >= stall_seconds:
                raise fetch_failed(f"{uri}: nothing has come for {stall_seconds:g} s; start again, it resumes")
            await asyncio.wait((fetch,), timeout=stall_seconds - silent)
        path = str(fetch.result())
        if reader is not None:
            path = await cached(uri, cache, reader)
    finally:
        stop.set()  # the thread sees it with the next bytes, which may never come
        fetch.cancel()
    tracker.end()
    return path


class _Tracker:
    """Turns what the fetching thread says into phases."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Report) -> None:
        self._loop, self._report = loop, report
        self._began = {contract.PHASE_FETCH: monotonic()}
        self._shown: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self.heard = monotonic()

    def fetched(self, done: int, total: int) -> None:
        self._tell(contract.PHASE_FETCH, done, total)

    def checked(self, done: int, total: int) -> None:
        """Several threads take sums."""
        self._tell(contract.PHASE_VERIFY, done, total)

    def end(self) -> None:
        """Every phase that began is done."""
        ends = [*list(self._began.values())[1:], monotonic()]
        for (name, began), ended in zip(self._began.items(), ends, strict=True):
            size = self._sizes.get(name, 0)
            self._report(PhaseUpdate(name, ended - began, size, size, done=True))

    def _tell(self, name: str, done: int, total: int) -> None:
        now = self.heard = monotonic()
        began = self._began.setdefault(name, now)
        self._sizes[name] = total
        if now - self._shown.get(name, 0.0) > _REPORT_SECONDS:
            self._shown[name] = now
            update = PhaseUpdate(name, now - began, done, total, done=False)
            self._loop.call_soon_threadsafe(self._report, update)


async def cached(uri: str, cache: str | None, reader: Reader) -> str:
    """Path of a model that was fetched before, kept by ``reader``. Raises StartupError."""
    try:
        async with asyncio.timeout(_CACHE_SECONDS):
            return str(await _in_daemon(partial(_cached, uri, cache_folder(cache), reader)))
    except TimeoutError as error:
        raise fetch_failed(f"{uri}: {cache_folder(cache)} did not answer within {_CACHE_SECONDS:g} s") from error


def _cached(uri: str, cache: Path, reader: Reader) -> Path:
    for _ in range(_TRIES):
        path = cached_model(uri, cache)
        if reader.keep(path):
            return path
    raise fetch_failed(f"{uri}: {path} was replaced again and again while it was opened; start again")


async def _in_daemon(function: Callable[[], T]) -> T:
    """``function``'s answer, from a thread that the end of the process does not wait for."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only left alone

    def run() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:  # noqa: BLE001 - the other side raises it
            answer.set_exception(error)

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return await asyncio.wrap_future(answer)


def abandoned() -> bool:
    """Whether a download still runs that nobody waits for."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def cache_folder(cache: str | None) -> Path:
    return Path(cache) if cache else DEFAULT_CACHE
