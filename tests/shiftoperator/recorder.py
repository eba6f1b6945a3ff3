"""A stand-in of the reconciler that records which passes the controller asks for."""

from __future__ import annotations

import asyncio
from typing import Any

from shiftoperator.names import Key
from shiftoperator.plan import Found

KEY, OTHER = Key("team", "gemma"), Key("team", "other")


class Recorder:
    """Stands in for the reconciler."""

    def __init__(self) -> None:
        self.calls: list[tuple[Key, bool]] = []
        self.whole: list[bool] = []
        self.pushes: list[tuple[Key, Any]] = []
        self.push_fails: Exception | None = None
        self.answers: list[Found | Exception] = []
        # Of what is not in `answers`, the others are settled.
        self.unsettled: set[Key] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = self.most_running = 0
        self.forgotten = 0

    async def forget_all(self) -> None:
        assert self.running == 0, "a pass that runs would remember again"
        self.forgotten += 1

    async def push(self, key: Key, hint: Any) -> None:
        self.pushes.append((key, hint))
        if self.push_fails is not None:
            raise self.push_fails

    async def reconcile(self, key: Key, full: bool, whole: bool) -> Found:
        self.calls.append((key, full))
        self.whole.append(whole)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if full:
                await self.gate.wait()
        finally:
            self.running -= 1
        usual = Found.UNSETTLED if key in self.unsettled else Found.SETTLED
        answer = self.answers.pop(0) if self.answers else usual
        if isinstance(answer, Exception):
            raise answer
        return answer


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
