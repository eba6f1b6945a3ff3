"""`spec.observability`: what pods tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shiftoperator.errors import InvalidSpecError

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Logs:
    """None: as the runtime does without being told."""

    format: str | None = None
    level: str | None = None
    # A line for every request that ended.
    requests: bool = False


def logs(observability: dict[str, Any]) -> Logs:
    asked = observability.get("logs", {})
    for field, known in (("format", LOG_FORMATS), ("level", LOG_LEVELS)):
        if asked.get(field) not in (None, *known):
            raise InvalidSpecError(f"observability.logs.{field} {asked[field]!r} is unknown; use {', '.join(known)}")
    return Logs(asked.get("format"), asked.get("level"), bool(asked.get("requests", False)))
