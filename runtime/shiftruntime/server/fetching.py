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
from shiftruntime.models.fetch import DEFAULT_CACHE, LocalModel, cached_model, fetch_model, parse_uri

FETCH_SECONDS = 3600.0  # a large model over a slow line
_REPORT_SECONDS = 0.5
_THREAD = "fetch"

T = TypeVar("T")

Report = Callable[[PhaseUpdate], None]


async def fetched(
    uri: str,
    cache: str | None,
    report: Report,
    seconds: float = FETCH_SECONDS,
    limit_bytes: int | None = None,
) -> str:
    """Path of the model; a URI that is local costs nothing. Raises StartupError; cancelling it ends the download."""
    model = parse_uri(uri)
    if isinstance(model, LocalModel):
        return str(model.path)
    loop, stop, started = asyncio.get_running_loop(), threading.Event(), monotonic()
    shown, size = 0.0, 0

    def progress(done: int, total: int) -> None:  # in the thread
        nonlocal shown, size
        size = total
        seconds = monotonic() - started
        if seconds - shown > _REPORT_SECONDS or shown == 0.0:
            shown = seconds
            loop.call_soon_threadsafe(report, PhaseUpdate(contract.PHASE_FETCH, seconds, done, total, done=False))

    report(PhaseUpdate(contract.PHASE_FETCH, 0.0))
    try:
        async with asyncio.timeout(seconds):
            path = await _in_daemon(partial(fetch_model, uri, cache_folder(cache), progress, stop, limit_bytes))
    except TimeoutError as error:
        raise fetch_failed(f"{uri} was not fetched within {seconds:g} s; start again, it resumes") from error
    finally:
        stop.set()  # the thread sees it with the next bytes, which may never come
    report(PhaseUpdate(contract.PHASE_FETCH, monotonic() - started, size, size, done=True))
    return str(path)


async def cached(uri: str, cache: str | None, seconds: float = FETCH_SECONDS) -> str:
    """Path of a model that was fetched before. Raises StartupError; cancelling it ends the wait for its lock."""
    stop = threading.Event()
    try:
        async with asyncio.timeout(seconds):
            return str(await _in_daemon(partial(cached_model, uri, cache_folder(cache), stop)))
    except TimeoutError as error:
        raise fetch_failed(f"{uri}: another process has held its lock for {seconds:g} s") from error
    finally:
        stop.set()


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
