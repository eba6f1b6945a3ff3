"""What a failure scenario reports: how often it did harm, what went wrong then, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field

# For starts that are no part of what is measured: machines are busy.
START_SECONDS = 600.0


@dataclass(frozen=True)
class Outcome:
    injected: int
    bad: list[str]  # a sentence for every outcome that must not be
    notes: dict[str, float | str] = field(default_factory=dict)

    def __str__(self) -> str:
        notes = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in self.notes.items()
        )
        return f"injected {self.injected}, bad {len(self.bad)}" + (f" ({notes})" if notes else "")
