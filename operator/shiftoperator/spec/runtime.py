"""`spec.runtime`: the container that serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Runtime:
    image: str | None = None
    device: str = "cpu"
    resources: dict[str, Any] = field(default_factory=dict)
    env: tuple[dict[str, Any], ...] = ()


def runtime(asked: dict[str, Any]) -> Runtime:
    return Runtime(
        asked.get("image"),
        asked.get("device", "cpu"),
        asked.get("resources", {}),
        tuple(asked.get("env", ())),
    )
