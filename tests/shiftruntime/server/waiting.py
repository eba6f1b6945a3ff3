"""Waits for what is seen from outside only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SECONDS = 10.0


async def eventually(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Raises TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)
