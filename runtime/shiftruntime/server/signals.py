"""The signals that ask a process to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def signals(asked_to_end: Callable[[], None]) -> Iterator[None]:
    """Calls ``asked_to_end`` in the event loop for every SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, asked_to_end)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
