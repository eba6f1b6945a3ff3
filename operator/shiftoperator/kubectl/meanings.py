"""What a reason means and what to do about it, from meanings.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from shiftprotos import contract


@dataclass(frozen=True)
class Meaning:
    meaning: str
    cure: str


def meaning(condition: str, reason: str) -> Meaning | None:
    """None for a reason of a later operator."""
    found = tables()
    shared = [table for name, table in found.items() if name not in contract.CONDITIONS]
    for table in [found.get(condition, {}), *shared]:
        if reason in table:
            _, meant, cure = table[reason]
            return Meaning(meant, cure)
    return None


@cache
def tables() -> dict[str, dict[str, list[str]]]:
    """By section and reason: who carries it or with which status, the meaning, what to do."""
    return tomllib.loads(resources.files(__package__).joinpath("meanings.toml").read_text("utf-8"))
