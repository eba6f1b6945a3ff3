"""The first frame to an engine process."""

from __future__ import annotations

import msgspec

from shiftruntime.engine.options import EngineOptions


class Start(msgspec.Struct, frozen=True, tag=True):
    options: EngineOptions
