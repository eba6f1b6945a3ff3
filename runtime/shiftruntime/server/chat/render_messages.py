"""What the front end and a process that renders templates say to each other, and what such a process may use."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

# How a renderer ends whose memory is used up: any further work in it could fail for the same reason.
EXIT_NO_MEMORY = 86


@dataclass(frozen=True)
class RenderLimits:
    """For one compilation or rendering."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 20.0  # also on a machine that is busy with other things
    memory_bytes: int = 256 * 2**20  # beside what the process needs to run at all
    characters: int = 8 * 2**20  # of the prompt


class Compile(msgspec.Struct, tag=True):
    key: str
    text: str


class Render(msgspec.Struct, tag=True):
    key: str  # of a template compiled before
    values: bytes  # JSON, which unlike msgpack has integers of any length
    now: str  # ISO 8601, local time


class Started(msgspec.Struct, tag=True):
    pass


class Compiled(msgspec.Struct, tag=True):
    pass


class Rendered(msgspec.Struct, tag=True):
    text: str


class Failed(msgspec.Struct, tag=True):
    """``sentence`` goes on after the template's name."""

    sentence: str


ToRenderer = Compile | Render
FromRenderer = Started | Compiled | Rendered | Failed
