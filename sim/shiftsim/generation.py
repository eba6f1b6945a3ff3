"""A request of the simulator: the scheduler's, with a number of tokens for its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from shiftcore.request import Request


class Count:
    """Tokens of which only the number matters; a prompt of 100,000 then takes no more memory than one of 10."""

    __slots__ = ("_length",)

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int, /) -> int: ...

    @overload
    def __getitem__(self, place: slice, /) -> Sequence[int]: ...

    def __getitem__(self, place: int | slice, /) -> int | Sequence[int]:
        return range(self._length)[place]

    def append(self, token: int, /) -> None:
        self._length += 1

    def extend(self, tokens: Sequence[int], /) -> None:
        self._length += len(tokens)


@dataclass(eq=False)
class Generation(Request):
    """``first_token_seconds`` on the engine's clock, once there is one."""

    first_token_seconds: float | None = field(init=False, default=None)

    def _keep(self, prompt: Sequence[int]) -> Count:
        return Count(len(prompt))

    @staticmethod
    def of(number: int, arrival_seconds: float, prompt_tokens: int, output_tokens: int) -> Generation:
        """A request yields at least one token: with the last of its prompt there is one."""
        prompt = range(prompt_tokens)
        return Generation(str(number), prompt, max(1, output_tokens), arrival_seconds=arrival_seconds)
