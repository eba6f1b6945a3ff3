"""What a campaign reports (tests/campaign.py), and the seed that all of them begin with."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

SEED_VARIABLE = "SHIFT_FUZZ_SEED"


@dataclass(frozen=True)
class Outcome:
    """``bad`` counts what must not happen; any makes the campaign fail. ``notes`` are printed as they are."""

    injected: int
    unit: str  # of what was injected: "shifts", "kills"
    bad: int
    notes: tuple[str, ...] = ()


def chosen_seed(default: int | None = None) -> int:
    """From the environment, else the default, else a new one; whoever calls this prints it."""
    given = os.environ.get(SEED_VARIABLE)
    if given:
        return int(given)
    return secrets.randbelow(2**31) if default is None else default
